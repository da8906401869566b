"""Gradients of several batches, added up until there are enough for one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from akkordeon.core.messages import Batch

__all__ = ["Gathered", "GatheredMean", "add_up"]


class GatheredMean(NamedTuple):
    """What an update is to be made of: the mean of the gradients of some batches, and their samples."""

    batches: list[Batch]
    samples: int
    gradients: list[Tensor | None]


class Gathered:
    """The gradients of some batches.

    Args:
        enough: batches for one update.

    Attributes:
        enough: batches for one update.
        batches: whose gradients are in it.
        samples: that these have.
    """

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self._sums: list[Tensor | None] = []
        self.batches: list[Batch] = []
        self.samples = 0

    def add(self, batch: Batch, gradients: list[Tensor | None], samples: int) -> None:
        """Add those of a batch, one for each parameter; they are ours to work on in place."""
        self.batches.append(batch)
        self.samples += samples
        if self._sums:
            add_up(self._sums, gradients)
        else:
            self._sums = list(gradients)

    @property
    def is_enough(self) -> bool:
        """Whether there are enough for an update."""
        return len(self.batches) >= self.enough

    def take(self) -> GatheredMean:
        """The batches and the mean of their gradients; it is empty then.

        A parameter on which only some of them depend has the mean over all, as in a plain loop.
        """
        batches, samples, sums = self.batches, self.samples, self._sums
        self.batches, self.samples, self._sums = [], 0, []
        count = len(batches)
        mean = sums if count == 1 else [None if total is None else total.div_(count) for total in sums]
        return GatheredMean(batches, samples, mean)

    def state(self, names: Sequence[str]) -> dict[str, Any]:
        """What is in it as plain data, in memory of its own; by the names of the parameters."""
        named = zip(names, self._sums, strict=False)
        return {
            "sums": {name: total.clone() for name, total in named if total is not None},
            "batches": [[batch.sentinel, batch.number] for batch in self.batches],
            "samples": self.samples,
        }

    def load(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Go on from such a state, which stays as it is."""
        self.batches = [Batch(sentinel, number) for sentinel, number in state["batches"]]
        self.samples = state.get("samples", 0)  # older states have none
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
