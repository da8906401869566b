"""Records from the lines of an open file, such as standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from akkordeon.data.streams.records import Format, LineParser

__all__ = ["Lines"]


class Lines:
    """A source of records, one for each line. What was read is gone: a restart goes on with the next line.

    Args:
        lines: an open text file, or anything else that gives lines; standard input if not given.
        form: ``"json"`` or ``"csv"``; see :class:`LineParser <akkordeon.data.streams.records.LineParser>`.

    Raises:
        RecipeError: another format.
    """

    def __init__(self, lines: Iterable[str] | None = None, form: Format = "json") -> None:
        self._lines = lines
        self._parser = LineParser(form)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in sys.stdin if self._lines is None else self._lines:
            record = self._parser.parse(line)
            if record is not None:
                yield record

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs to know: the names in the first line."""
        return self._parser.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the next line."""
        self._parser.go_on_from(state)
