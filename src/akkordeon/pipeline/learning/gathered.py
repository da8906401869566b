"""Gradients of several batches, added up until there are enough for one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from akkordeon.core.messages import Batch

__all__ = ["Gathered", "add_up"]


class Gathered:
    """The gradients of some batches.

    Args:
        enough: batches for one update.

    Attributes:
        batches: whose gradients are in it.
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._sums: list[Tensor | None] = []
        self.batches: list[Batch] = []

    def add(self, batch: Batch, gradients: list[Tensor | None]) -> None:
        """Add those of a batch, one for each parameter; they are ours to work on in place."""
        self.batches.append(batch)
        if self._sums:
            add_up(self._sums, gradients)
        else:
            self._sums = list(gradients)

    @property
    def is_enough(self) -> bool:
        """Whether there are enough for an update."""
        return len(self.batches) >= self._enough

    def take_mean(self) -> tuple[list[Batch], list[Tensor | None]]:
        """The batches and the mean of their gradients; it is empty then.

        A parameter on which only some of them depend has the mean over all, as in a plain loop.
        """
        batches, sums = self.batches, self._sums
        self.batches, self._sums = [], []
        return batches, [None if total is None else total.div_(len(batches)) for total in sums]

    def state(self, names: Sequence[str]) -> dict[str, Any]:
        """What is in it as plain data, in memory of its own; by the names of the parameters."""
        named = zip(names, self._sums, strict=False)
        return {
            "sums": {name: total.clone() for name, total in named if total is not None},
            "batches": [[batch.sentinel, batch.number] for batch in self.batches],
        }

    def load(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Go on from such a state, which stays as it is."""
        self.batches = [Batch(sentinel, number) for sentinel, number in state["batches"]]
        sums = [state["sums"].get(name) for name in names]
        self._sums = [None if total is None else total.clone() for total in sums] if self.batches else []


def add_up(sums: list[Tensor | None], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to sums in place; where there was no gradient there is still none, which is not 0."""
    for i, gradient in enumerate(gradients):
        total = sums[i]
        if gradient is None:
            continue
        if total is None:
            sums[i] = gradient
        elif total.is_sparse == gradient.is_sparse:
            total.add_(gradient)
        else:
            sums[i] = total + gradient if gradient.is_sparse else gradient + total
