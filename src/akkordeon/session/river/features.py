"""Dicts of features as rows of a tensor; every feature keeps the column it was first given."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.errors import DataError
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.nn import Standardize

__all__ = ["Features", "inputs_of"]

Row = Mapping[Any, Any]


class Features:
    """The columns of features, which are found on the way.

    Args:
        inputs: columns there are; None takes as many as the first rows have features.
    """

    def __init__(self, inputs: int | None) -> None:
        self._inputs = inputs
        self._columns: dict[Hashable, int] = {}

    def tensor(self, rows: Sequence[Row], *, learn: bool) -> Tensor:
        """(N, inputs) float32. A feature that a row does not have is 0 there.

        Args:
            rows: N of them.
            learn: give new features a column; else they are left out.

        Raises:
            DataError: there are more features than columns, or one is no number.
        """
        if learn:
            self._take_in(rows)
        columns = self._columns
        values = [[0.0] * (self._inputs or len(columns)) for _ in rows]
        for row, into in zip(rows, values, strict=True):
            for name, value in row.items():
                if name in columns:
                    into[columns[name]] = _number(name, value)
        return torch.tensor(values)

    def _take_in(self, rows: Sequence[Row]) -> None:
        new = dict.fromkeys(name for row in rows for name in _in_order(row) if name not in self._columns)
        if not new:
            return
        room = (self._inputs or len(new)) - len(self._columns)
        if len(new) > room:
            raise DataError(
                f"the feature {list(new)[room]!r} is one too many for the {len(self._columns) + room} inputs "
                "of the network; make its first gate wider, or select features"
            )
        for name in new:
            self._columns[name] = len(self._columns)
        self._inputs = self._inputs or len(new)


def _in_order(row: Row) -> Iterable[Hashable]:
    """Names in an order that does not depend on that of the dict."""
    return sorted(row, key=lambda name: (type(name).__name__, name))


def _number(name: Hashable, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"the feature {name!r} is {value!r}, and no number; encode it first") from None


def inputs_of(network: Network) -> int | None:
    """How many features a row of gates takes, where its first layer says so."""
    for module in network.gates[0].module.modules():
        if isinstance(module, Standardize):
            return len(module.mean)
        if isinstance(module, nn.Linear):
            return module.in_features
    return None
