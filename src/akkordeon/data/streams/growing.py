"""Records from a file that somebody else writes on, as ``tail -f`` shows it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from akkordeon.core.checks import require_above, require_path
from akkordeon.core.errors import DataError
from akkordeon.data.streams.records import Format, LineParser

__all__ = ["GrowingFile"]


class GrowingFile:
    """A source of records, one for each whole line of a file. At its end it waits for more.

    It knows its place in the file, so that a run that is taken up goes on there.

    Args:
        path: of the file.
        form: ``"csv"`` or ``"json"``; see :class:`LineParser <akkordeon.data.streams.records.LineParser>`.
        poll_s: seconds from one look for new lines to the next.
        follow: wait for more at the end; if not, the source ends there.

    Raises:
        RecipeError: another format, a path that is none, or no time between two looks.
    """

    def __init__(
        self, path: str | Path, form: Format = "csv", *, poll_s: float = 0.2, follow: bool = True
    ) -> None:
        require_path("a growing file", path)
        require_above("poll_s", poll_s)
        self._path = Path(path)
        self._poll_s = poll_s
        self._follow = follow
        self._parser = LineParser(form)
        self._offset = 0  # in bytes, of the first line that was not given
        self._closed = threading.Event()

    def close(self) -> None:
        """Have the source end after the lines that are there; from any thread."""
        self._closed.set()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._lines():
            record = self._parser.parse(self._decoded(line))
            if record is not None:
                yield record

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            number = self._parser.lines + 1
            raise DataError(f"line {number} of {self._path} is no text in UTF-8: {error.reason}") from None

    def _lines(self) -> Iterator[bytes]:
        """Whole lines; at the very end also one that nothing ends."""
        try:
            with self._path.open("rb") as file:
                while True:
                    is_last = not self._follow or self._closed.is_set()
                    yield from self._lines_there(file, is_last)
                    if is_last:
                        return
                    self._closed.wait(self._poll_s)
        except OSError as error:
            raise DataError(f"{self._path} cannot be read: {error.strerror or error}") from error

    def _lines_there(self, file: BinaryIO, is_last: bool) -> Iterator[bytes]:
        if os.fstat(file.fileno()).st_size < self._offset:
            raise DataError(f"{self._path} was cut off before byte {self._offset}, up to where it was read")
        file.seek(self._offset)
        for line in file:
            if not (line.endswith(b"\n") or is_last):
                return
            self._offset += len(line)
            yield line

    def state_dict(self) -> dict[str, Any]:
        """Where in the file it is."""
        return {"offset": self._offset, **self._parser.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._offset = state["offset"]
        self._parser.go_on_from(state)
