"""The report of a run as a file of JSON lines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from akkordeon.errors import DataError
from akkordeon.keeping import REPORT, as_json
from akkordeon.metrics import BatchRefused, EpochDone, RoundDone

__all__ = ["Journal"]


class Journal:
    """Writes records as they come into ``report.jsonl.part``; closed, it becomes ``report.jsonl``.

    Args:
        folder: where the file goes.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / REPORT
        self._part = folder / f"{REPORT}.part"
        with self._told():
            self._file = self._part.open("w", encoding="utf-8", buffering=1)  # a line is there at once

    def tell(self, record: Any) -> None:
        """Write a record of an epoch, a round or a refused batch."""
        if isinstance(record, EpochDone | RoundDone):
            self._write(type(record).__name__, {**asdict(record), "samples_per_s": record.samples_per_s})
        elif isinstance(record, BatchRefused):
            self._write(type(record).__name__, asdict(record))

    def close(self, outcome: Mapping[str, Any]) -> None:
        """Write the summary as the last line, and give the file its name."""
        self._write("Summary", outcome)
        with self._told():
            self._file.close()
            os.replace(self._part, self._path)

    def _write(self, kind: str, content: Mapping[str, Any]) -> None:
        with self._told():
            self._file.write(as_json({"record": kind, **content}) + "\n")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self._path} cannot be written: {error.strerror or error}") from error
