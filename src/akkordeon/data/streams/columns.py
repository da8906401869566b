"""From records to what a stream learns from: tensors of one example, by the names of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.errors import DataError
from akkordeon.core.streams.messages import Answer, Labelled, Question

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """A ``split`` for sources of records.

    With a ``key`` records that come again are known, and inputs and labels may come apart: a record without a
    label is a question, and one without features the answer to it.

    Attributes:
        features: names of the inputs, numbers all of them.
        label: name of what is to be predicted.
        classes: the labels there are, in the order of the network's outputs; None where it is a number.
        key: name of what a record is known by, and a label matched with its features.
    """

    features: Sequence[str]
    label: str
    classes: Sequence[Any] | None = None
    key: str | None = None

    def __call__(self, record: Mapping[str, Any]) -> tuple[Tensor, Tensor] | Labelled | Question | Answer:
        """X (1, features) float32 and y: (1,) int64 of classes, (1, 1) float32 of a number.

        Raises:
            DataError: something is missing, or is no number, or no class.
        """
        is_whole = {self.label, *self.features} <= record.keys()
        if self.key is None or (is_whole and self.key not in record):
            return self._x(record), self._y(record)
        key = self._of(record, self.key)
        key = int(key) if isinstance(key, float) and key.is_integer() else key
        if is_whole:
            return Labelled(key, self._x(record), self._y(record))
        if self.label in record:
            return Answer(key, self._y(record))
        return Question(key, self._x(record))

    def _x(self, record: Mapping[str, Any]) -> Tensor:
        return torch.tensor([[self._number(record, name) for name in self.features]])

    def _y(self, record: Mapping[str, Any]) -> Tensor:
        if self.classes is None:
            return torch.tensor([[self._number(record, self.label)]])
        label = self._of(record, self.label)
        if label not in self.classes:
            known = ", ".join(map(repr, self.classes))
            raise DataError(f"the {self.label} of a record is {label!r}, and none of {known}")
        return torch.tensor([self.classes.index(label)])

    def _number(self, record: Mapping[str, Any], name: str) -> float:
        value = self._of(record, name)
        if not isinstance(value, int | float):
            raise DataError(f"the {name} of a record is {value!r}, and no number")
        return float(value)

    def _of(self, record: Mapping[str, Any], name: str) -> Any:
        if name not in record:
            raise DataError(f"a record has no {name}; it has {', '.join(map(str, record)) or 'nothing'}")
        return record[name]
