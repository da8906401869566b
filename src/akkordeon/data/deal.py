"""One order of a ``DataLoader``, dealt out among several readers: its sampler is asked once for all of them.

A sampler may draw from anywhere, such as Python's ``random``: several that are asked, each for its own
reader, need not agree, and some samples would be read twice and others never. The order is drawn as it is
needed, by whoever comes first, and what is kept is indices, of the epochs that some reader is not done with.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from akkordeon.core.errors import DataError

__all__ = ["Deal", "FirstIndices"]

SEEDED = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, list, tuple, range)
"""Samplers that give the same order wherever they are asked, given a generator of the same state."""


class Deal:
    """Deals the batches of one order, epoch by epoch.

    Args:
        order: gives the lists of indices of an epoch, each time it is read those of the next.
    """

    def __init__(self, order: DataLoader[Any]) -> None:
        self._order = order
        self._lock = threading.Lock()
        self._drawn: dict[int, tuple[list[Any], Iterator[Any]]] = {}
        self._parts: weakref.WeakSet[_Part] = weakref.WeakSet()

    def part(self, i: int, n: int) -> _Part:
        """The i-th of ``n`` parts, to be read again and again."""
        part = _Part(self, i, n)
        self._parts.add(part)
        return part

    def batch(self, epoch: int, number: int) -> Any:
        """The indices of a batch; None where the epoch has fewer."""
        with self._lock:
            if epoch not in self._drawn:
                self._drawn[epoch] = [], iter(self._order)
            drawn, following = self._drawn[epoch]
            while len(drawn) <= number:
                indices = next(following, None)
                if indices is None:
                    return None
                drawn.append(indices)
            return drawn[number]

    def forget(self) -> None:
        """Drop the epochs that every part that is still read is done with."""
        with self._lock:
            first = min((part.epoch for part in self._parts), default=0)
            self._drawn = {epoch: drawn for epoch, drawn in self._drawn.items() if epoch >= first}

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it deals on its own, which is the same only if its order cannot differ."""
        sampler: Any = self._order.batch_sampler
        while type(sampler) in (BatchSampler, FirstIndices):
            sampler = sampler.sampler
        if type(sampler) not in SEEDED:
            raise DataError(
                f"nobody knows whether a {type(sampler).__name__} gives the same order in another process, "
                "so a DataLoader with it cannot be dealt to several; give Batches, or shuffle=True"
            )
        return Deal, (self._order,)


class _Part:
    """Every n-th batch of an order: a batch sampler."""

    def __init__(self, deal: Deal, i: int, n: int) -> None:
        self.deal = deal
        self.i = i
        self.n = n
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        epoch, number = self.epoch, self.i
        while (indices := self.deal.batch(epoch, number)) is not None:
            yield indices
            number += self.n
        self.epoch = max(self.epoch, epoch + 1)
        self.deal.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return _part_of, (self.deal, self.i, self.n)


def _part_of(deal: Deal, i: int, n: int) -> _Part:
    return deal.part(i, n)


@dataclass(eq=False)
class FirstIndices:
    """The batches of a batch sampler up to so many samples."""

    sampler: Any
    samples: int

    def __iter__(self) -> Iterator[list[Any]]:
        left = self.samples
        for indices in self.sampler:
            yield list(indices)[:left]
            left -= len(indices)
            if left <= 0:
                return
