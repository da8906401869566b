"""Figures of gradients and of copies of weights, and what they come to over many batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from akkordeon.core.payload import memory, nbytes
from akkordeon.pipeline.weights import Snapshot

__all__ = ["Spread", "copies_in", "cosine", "relative_correction"]

Gradients = Sequence[Tensor | None]


class Spread:
    """Mean and extremes of figures; those that are no numbers are left out."""

    def __init__(self) -> None:
        self._count = 0
        self._total = 0.0
        self._min = math.inf
        self._max = -math.inf

    def add(self, value: float) -> None:
        """Take in another."""
        if math.isfinite(value):
            self._count += 1
            self._total += value
            self._min, self._max = min(self._min, value), max(self._max, value)

    @property
    def mean(self) -> float | None:
        """Mean; None where there are none."""
        return self._total / self._count if self._count else None

    @property
    def least(self) -> float | None:
        """The smallest, likewise."""
        return self._min if self._count else None

    @property
    def most(self) -> float | None:
        """The largest, likewise."""
        return self._max if self._count else None


def cosine(one: Gradients, other: Gradients) -> float:
    """That of the angle between two gradients, each of several tensors as one vector; NaN where one is 0."""
    product = sum(_dot(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)
    norms = math.sqrt(_squared(one)) * math.sqrt(_squared(other))
    return max(-1.0, min(1.0, product / norms)) if norms else math.nan


def relative_correction(gradients: Gradients, corrected: Gradients) -> float:
    """‖corrected - gradient‖ / ‖gradient‖, each of several tensors as one vector; NaN where that is 0."""
    pairs = zip(corrected, gradients, strict=True)
    added = [_flat(a) - _flat(b) for a, b in pairs if a is not None and b is not None]
    squared = _squared(gradients)
    return math.sqrt(_squared(added) / squared) if squared else math.nan


def _squared(gradients: Iterable[Tensor | None]) -> float:
    return sum(_dot(gradient, gradient) for gradient in gradients if gradient is not None)


def _dot(one: Tensor, other: Tensor) -> float:
    return float(_flat(one).dot(_flat(other)))


def _flat(tensor: Tensor) -> Tensor:
    """The elements in a row, in double precision: a sum over millions of them is to be one."""
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return (torch.view_as_real(dense) if dense.is_complex() else dense).reshape(-1).double()


def copies_in(snapshots: Sequence[Snapshot]) -> tuple[int, int]:
    """How many versions are in memory, and how many bytes they have: what several share counts once."""
    versions = {tuple(map(memory, snapshot)) for snapshot in snapshots}
    memories = {memory(weight): _bytes_behind(weight) for snapshot in snapshots for weight in snapshot}
    return len(versions), sum(memories.values())


def _bytes_behind(weight: Tensor) -> int:
    """Of the memory that a weight is in, of which it may be a part."""
    return weight.untyped_storage().nbytes() if weight.layout is torch.strided else nbytes(weight)
