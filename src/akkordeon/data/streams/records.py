"""Lines of text as records: JSON objects, or the rows of a CSV file by the names in its first line."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from typing import Any, Literal

from akkordeon.core.errors import DataError, RecipeError

__all__ = ["Format", "LineParser", "parsed_value"]

Format = Literal["json", "csv"]

BYTE_ORDER_MARK = "\ufeff"
"""What spreadsheets put before the first line of a file."""


class LineParser:
    """Makes records of lines, one after the other.

    Args:
        form: ``"json"`` for an object in each line, ``"csv"`` for values separated by commas below a line of
            names. Values of CSV that are numbers come as floats, all others as strings.

    Attributes:
        lines: parsed so far.

    Raises:
        RecipeError: another format.
    """

    def __init__(self, form: Format) -> None:
        if form not in ("json", "csv"):
            raise RecipeError(f"lines are 'json' or 'csv', got {form!r}")
        self._form = form
        self._names: list[str] | None = None
        self.lines = 0

    def parse(self, line: str) -> dict[str, Any] | None:
        """The record of a line; None of an empty one, and of one with the names.

        Raises:
            DataError: it is no record.
        """
        self.lines += 1
        line = line.removeprefix(BYTE_ORDER_MARK).strip()
        if not line:
            return None
        return self._json(line) if self._form == "json" else self._csv(line)

    def _json(self, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {self.lines} is no JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"line {self.lines} is a JSON {type(record).__name__}, and no object")
        return record

    def _csv(self, line: str) -> dict[str, Any] | None:
        (values,) = csv.reader([line])
        if self._names is None or values == self._names:  # whoever writes began anew
            self._names = values
            return None
        if len(values) != len(self._names):
            raise DataError(f"line {self.lines} has {len(values)} values for {len(self._names)} names")
        return dict(zip(self._names, map(parsed_value, values), strict=True))

    def state(self) -> dict[str, Any]:
        """Where it is, as plain data."""
        return {"names": self._names, "lines": self.lines}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take up what another one was."""
        self._names, self.lines = state["names"], state["lines"]


def parsed_value(text: str) -> float | str:
    """A number as one, and all else as it is."""
    try:
        return float(text)
    except ValueError:
        return text
