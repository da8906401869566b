"""Batches cut by slicing tensors that are in memory.

Letters: N samples, B samples of one batch, k the number of an epoch, counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from akkordeon.core.checks import require_whole
from akkordeon.core.errors import DataError

__all__ = ["Batches", "Tensors", "derived_seed", "permutation"]

Tensors: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What x or y of a batch may be; in a tuple or dict every tensor has the same length."""


@dataclass(eq=False)
class Batches:
    """Cuts x and y, which are in memory, into batches; iterating again gives the next epoch.

    A batch is a slice: without ``shuffle`` a view of x and y (whoever writes into it writes into the
    data), with ``shuffle`` one ``index_select`` with the epoch's permutation. The permutation depends on
    ``seed`` and the number of the epoch alone, and no global random state is read or moved.

    Args:
        x: inputs, (N, ...), or a tuple or dict of such tensors.
        y: labels, (N, ...), or a tuple or dict of such tensors.
        batch_size: B; the last batch of an epoch has what is left.
        shuffle: a new order in every epoch.
        seed: of the permutations, any integer.
        drop_last: leave out a last batch that is smaller than B.
        first_epoch: the epoch to begin with, where others were read before; see :meth:`from_epoch`.

    Raises:
        DataError: x or y is no tensor, they differ in length or are empty, a number is none or out of range,
            or ``drop_last`` leaves no batch.
    """

    x: Tensors = field(repr=False)
    y: Tensors = field(repr=False)
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    drop_last: bool = False
    first_epoch: int = 0
    samples: int = field(init=False)
    """N, the samples of one epoch; with ``drop_last`` up to B - 1 of them are left out."""
    _next_epoch: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        self.samples = _common_length(self.x, self.y)
        require_whole("batch_size", self.batch_size, error=DataError)
        require_whole("seed", self.seed, None, error=DataError)
        require_whole("first_epoch", self.first_epoch, 0, error=DataError)
        if len(self) == 0:
            raise DataError(
                f"drop_last leaves no batch of {self.batch_size} out of {self.samples} samples; "
                "choose a smaller batch_size or keep the last batch"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensors, Tensors]]:
        """The next epoch; the first call gives ``epoch(0)``."""
        k = self._next_epoch
        self._next_epoch += 1
        return self.epoch(k)

    def epoch(self, k: int) -> Iterator[tuple[Tensors, Tensors]]:
        """The batches of epoch ``k`` from the first, the same ones at every call; does not move ``iter``.

        Raises:
            DataError: ``k`` is negative.
        """
        _check_epoch(k)
        order = permutation(self.samples, self.seed, self.first_epoch + k) if self.shuffle else None
        cuts = (slice(b * self.batch_size, (b + 1) * self.batch_size) for b in range(len(self)))
        return ((_rows(self.x, cut, order), _rows(self.y, cut, order)) for cut in cuts)

    def take(self, n: int) -> Batches:
        """The first ``n`` samples (views).

        Raises:
            DataError: ``n`` is not between 1 and N.
        """
        if not (isinstance(n, Integral) and 1 <= n <= self.samples):
            raise DataError(f"cannot take {n!r} of {self.samples} samples")
        return replace(self, x=_map(lambda t: t[:n], self.x), y=_map(lambda t: t[:n], self.y))

    def part(self, i: int, n: int) -> Batches:
        """The i-th of ``n`` parts: samples i, i + n, i + 2n, ...; every part shuffles in its own way.

        The parts are disjoint, together they are all samples, and their sizes differ by one at most.
        A part owns its samples: shipped to another process, it does not take the other parts along.

        Raises:
            DataError: ``i`` is not between 0 and n - 1, or there are fewer than ``n`` samples.
        """
        if not (isinstance(i, Integral) and isinstance(n, Integral) and 0 <= i < n <= self.samples):
            raise DataError(f"cannot give part {i!r} of {n!r} of {self.samples} samples (parts count from 0)")
        x, y = (_map(lambda t: t[i::n].contiguous(), tensors) for tensors in (self.x, self.y))
        return replace(self, x=x, y=y, seed=derived_seed(self.seed, i, n) if n > 1 else self.seed)

    def from_epoch(self, k: int) -> Batches:
        """The same batches from epoch ``k`` (counted from 0) on, to go on where another run ended.

        Raises:
            DataError: ``k`` is negative.
        """
        _check_epoch(k)
        return replace(self, first_epoch=k)

    def with_batch_size(self, batch_size: int) -> Batches:
        """The same samples in batches of another size, from epoch 0."""
        return replace(self, batch_size=batch_size)

    def with_seed(self, seed: int) -> Batches:
        """The same samples in other orders, from epoch 0."""
        return replace(self, seed=seed)


def _check_epoch(k: Any) -> None:
    if not (isinstance(k, Integral) and int(k) >= 0):
        raise DataError(f"epochs are counted from 0, got {k!r}")


def derived_seed(seed: int, *key: int) -> int:
    """A seed of 64 bits; unlike ``seed + k``, neighbouring seeds and keys have nothing in common."""
    sequence = np.random.SeedSequence(int(seed) % 2**64, spawn_key=key)  # which refuses negative seeds
    return int(sequence.generate_state(1, np.uint64)[0])


def permutation(n: int, seed: int, *key: int) -> Tensor:
    """The numbers 0 to n - 1 in an order that seed and key alone decide."""
    generator = torch.Generator().manual_seed(derived_seed(seed, *key))
    return torch.randperm(n, generator=generator)


def _map(function: Callable[[Tensor], Tensor], tensors: Tensors) -> Tensors:
    if isinstance(tensors, dict):
        return {key: function(t) for key, t in tensors.items()}
    if isinstance(tensors, tuple):
        return tuple(function(t) for t in tensors)
    return function(tensors)


def _rows(tensors: Tensors, cut: slice, order: Tensor | None) -> Tensors:
    if order is None:
        return _map(lambda t: t[cut], tensors)
    rows = order[cut]
    return _map(lambda t: t.index_select(0, rows.to(t.device)), tensors)


def _leaves(name: str, tensors: object) -> dict[str, Tensor]:
    """The tensors by name: x, or x[0], x[1], or x['image'], ...; whatever else raises."""
    if isinstance(tensors, dict):
        leaves = {f"{name}[{key!r}]": t for key, t in tensors.items()}
    elif isinstance(tensors, tuple):
        leaves = {f"{name}[{i}]": t for i, t in enumerate(tensors)}
    else:
        leaves = {name: tensors}
    if not leaves:
        raise DataError(f"{name} is an empty {type(tensors).__name__}, which holds no samples")
    for leaf, t in leaves.items():
        if not isinstance(t, Tensor) or t.ndim == 0:
            got = f"a {type(t).__name__}" if not isinstance(t, Tensor) else "a tensor without dimensions"
            raise DataError(f"{leaf} must be a tensor with one row per sample, got {got}")
    return leaves


def _common_length(x: object, y: object) -> int:
    lengths = {name: len(t) for name, t in (_leaves("x", x) | _leaves("y", y)).items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise DataError(f"x and y differ in their number of samples ({sizes}); give every input its label")
    samples = max(lengths.values())
    if samples == 0:
        raise DataError("x and y hold no samples (0); a source needs at least one")
    return samples
