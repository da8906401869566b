"""Mini-batches as rows and back: lists of dicts, or data frames of pandas, Polars and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from river.utils import dataframe

from akkordeon.core.errors import DataError
from akkordeon.session.river.features import Row

__all__ = ["frame_like", "pairs_of", "rows_of", "series_like"]


def rows_of(x: Any) -> Sequence[Row]:
    """A list of dicts as it is, and the rows of a frame as such."""
    if isinstance(x, list):
        return x
    rows: Sequence[Row] = dataframe.into_frame(x).rows(named=True)
    return rows


def pairs_of(x: Any, y: Any) -> tuple[Sequence[Row], Sequence[Any]]:
    """Rows, and a label for each: a list as it is, and what is in a series.

    Raises:
        DataError: there are more of the one than of the other.
    """
    rows = rows_of(x)
    labels: Sequence[Any] = y if isinstance(y, list) else dataframe.into_series(y).to_list()
    if len(rows) != len(labels):
        raise DataError(f"a mini-batch has a label for each row, got {len(labels)} for {len(rows)} rows")
    return rows, labels


def series_like(x: Any, values: Sequence[Any], name: str | None = None) -> Any:
    """Values as a list, or as a series where ``x`` is a frame."""
    if isinstance(x, list):
        return list(values)
    return dataframe.to_native_series(np.asarray(values), name=name, like=dataframe.into_frame(x))


def frame_like(x: Any, rows: Sequence[Mapping[Any, float]]) -> Any:
    """Rows of equal names as a list of dicts, or as a frame where ``x`` is one."""
    if isinstance(x, list):
        return list(rows)
    columns = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    return dataframe.to_native_frame(columns, like=dataframe.into_frame(x))
