"""Sources of batches cut down to so many samples, dealt out among several sentinels, or read on later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from torch.utils.data import DataLoader

from akkordeon.core.errors import DataError
from akkordeon.core.payload import map_tensors, samples
from akkordeon.data.batches import Batches
from akkordeon.data.deal import Deal, FirstIndices
from akkordeon.data.loaders import gives_indices, order_of, private_loader, read_on, reordered

__all__ = ["deal_data", "skip_epochs", "take_samples"]


@dataclass(frozen=True, eq=False)
class _Derived:
    """What another source gives, with something done to it each time it is read."""

    source: Iterable[Any]
    change: Callable[[Iterator[Any]], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.change(iter(self.source))


def take_samples(source: Any, n: int) -> Any:
    """The first ``n`` samples of a source, the last batch cut where it must be.

    Args:
        source: :class:`Batches`, or any iterable of (x, y) batches.
        n: at least 1.

    Raises:
        DataError: ``n`` is out of range.
    """
    if isinstance(source, Batches):
        return source.take(n)
    if n < 1:
        raise DataError(f"cannot take {n} samples")
    if isinstance(source, list | tuple):
        return list(_first(iter(source), n))
    if isinstance(source, DataLoader) and gives_indices(source):
        return reordered(source, FirstIndices(source.batch_sampler, n))
    return _Derived(source, lambda batches: _first(batches, n))


def _first(batches: Iterator[Any], n: int) -> Iterator[Any]:
    for x, y in batches:
        size = samples(x)
        cut = itemgetter(slice(n))
        yield (x, y) if size <= n else (map_tensors(cut, x), map_tensors(cut, y))
        n -= size
        if n <= 0:
            return


def deal_data(source: Any, n: int, seed: int = 0) -> list[Any]:
    """A source in ``n`` parts, disjoint and together all of it.

    Args:
        source: :class:`Batches`, whose samples are dealt out; or a list of batches or a ``DataLoader``, of
            which each part gets every n-th batch.
        n: at least 1.
        seed: of a ``DataLoader`` that brings no generator.

    Raises:
        DataError: there is too little to deal, or nobody knows whether each part would see the same order.
    """
    if n == 1:
        return [source]
    if isinstance(source, Batches):
        return [source.part(i, n) for i in range(n)]
    if isinstance(source, list | tuple):
        if len(source) < n:
            raise DataError(f"cannot deal {len(source)} batches to {n} sentinels")
        return [source[i::n] for i in range(n)]
    kind = type(source).__name__
    if isinstance(source, Iterator):
        raise DataError(f"a {kind} can be read only once, so it cannot be dealt to {n} sentinels")
    if not isinstance(source, DataLoader) or not gives_indices(source):
        of = f" of a {type(source.dataset).__name__}" if isinstance(source, DataLoader) else ""
        raise DataError(
            f"a {kind}{of} cannot be dealt to {n} sentinels: nobody knows whether it gives each the same "
            "order. Give Batches, a list, a DataLoader with a sampler, or to each one a source of its own"
        )
    private = private_loader(source, seed)
    deal = Deal(order_of(private))
    return [reordered(private, deal.part(i, n), seed=i) for i in range(n)]


def skip_epochs(source: Any, epochs: int, seed: int = 0) -> Any:
    """``Batches`` or a ``DataLoader``, to be read on after so many epochs.

    Args:
        source: one of these; anything else stays as it is.
        epochs: that were read before.
        seed: of a ``DataLoader`` that brings no generator.
    """
    if isinstance(source, Batches) and epochs:
        return source.from_epoch(source.first_epoch + epochs)
    if isinstance(source, DataLoader) and epochs:
        return read_on(private_loader(source, seed), epochs)
    return source
