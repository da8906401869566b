"""What a replica adds up between two pushes: its gradients, or how far its weights have come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from akkordeon.pipeline.learning.gathered import add_up

__all__ = ["Accumulator", "GradientSum", "WeightDelta"]


class Accumulator(ABC):
    """Adds up the steps of one gate of one replica; all of it in the order of its trainable weights."""

    @abstractmethod
    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """A step was made with these; they are ours to work on in place."""

    @abstractmethod
    def take(self, now: Sequence[Tensor]) -> list[Tensor | None]:
        """The total, in memory nobody else has; and start again from the weights as they are."""

    @abstractmethod
    def continue_from(self, fetched: Sequence[Tensor], now: Sequence[Tensor]) -> Sequence[Tensor]:
        """The weights to go on with, when these have been fetched, in memory that nobody else has.

        A module may write to its weights; what was fetched is the shard's own memory, where no copy was made.
        """


class GradientSum(Accumulator):
    """The sum of gradients, not their mean, as in Downpour (Dean et al. 2012)."""

    def __init__(self) -> None:
        self._sums: list[Tensor | None] = []

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the sums; see :func:`add_up`."""
        if self._sums:
            add_up(self._sums, gradients)
        else:
            self._sums = list(gradients)

    def take(self, now: Sequence[Tensor]) -> list[Tensor | None]:
        """The sums; see :class:`Accumulator`."""
        sums, self._sums = self._sums, []
        return sums or [None] * len(now)

    def continue_from(self, fetched: Sequence[Tensor], now: Sequence[Tensor]) -> Sequence[Tensor]:
        """What was fetched: local steps are in the sums, and come back with the next fetch."""
        return [weight.clone() for weight in fetched]


class WeightDelta(Accumulator):
    """Start minus now, the pseudo-gradient of local SGD: an optimizer that *subtracts* it goes our way.

    Args:
        start: the weights at the beginning.
    """

    def __init__(self, start: Sequence[Tensor]) -> None:
        self._start = list(start)
        self._steps = 0

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Count the step: what the optimizer makes of it is what will be pushed."""
        self._steps += 1

    def take(self, now: Sequence[Tensor]) -> list[Tensor | None]:
        """How far the weights have come, negative; see :class:`Accumulator`."""
        with torch.no_grad():
            found: list[Tensor | None] = [a - b for a, b in zip(self._start, now, strict=True)]
        self._start, self._steps = list(now), 0
        return found

    def continue_from(self, fetched: Sequence[Tensor], now: Sequence[Tensor]) -> Sequence[Tensor]:
        """What was fetched, and on top of it the steps since the last push, which it cannot contain."""
        start, self._start = self._start, list(fetched)
        if not self._steps:
            return [weight.clone() for weight in fetched]
        with torch.no_grad():
            return [f + (b - a) for f, a, b in zip(fetched, start, now, strict=True)]
