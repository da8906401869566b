"""Copies of a ``DataLoader`` of torch: with randomness of their own, read on, or in another order."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from akkordeon.data.batches import derived_seed

__all__ = ["gives_indices", "order_of", "private_loader", "read_on", "reordered"]


def private_loader(loader: DataLoader[Any], seed: int = 0) -> DataLoader[Any]:
    """A copy of ``loader`` that neither moves nor reads the global random state, nor moves the loader's.

    ``iter(DataLoader)`` draws a seed for its workers, even when it has none and does not shuffle, and a
    sampler without a generator draws another. The copy draws both from its own generator, so two copies
    with one seed give the same batches, and every epoch differs. A generator that the user gave to the
    loader or its sampler is copied as it stands: the copy gives the batches that ``loader`` would give.

    Whatever random numbers the data set itself draws in ``__getitem__`` are its own affair.

    Args:
        loader: of torch; with workers or without, of any kind of data set.
        seed: of the copy's generator.
    """
    fresh = torch.Generator().manual_seed(derived_seed(seed))
    twins: dict[torch.Generator, torch.Generator] = {}

    def own(generator: torch.Generator | None) -> torch.Generator:
        if generator is None:
            return fresh
        if generator not in twins:  # the loader and its sampler share one: so do the copies
            twins[generator] = torch.Generator(generator.device).set_state(generator.get_state())
        return twins[generator]

    private = copy.copy(loader)
    # DataLoader.__setattr__ refuses new samplers; the copy's attributes are written past it. Workers that
    # persist belong to the loader that started them.
    vars(private).update(
        generator=own(loader.generator),
        sampler=_private_sampler(loader.sampler, own),
        batch_sampler=_private_sampler(loader.batch_sampler, own),
        _iterator=None,
    )
    return private


def _private_sampler(sampler: Any, own: Callable[[torch.Generator | None], torch.Generator]) -> Any:
    """``sampler`` and the samplers it wraps, those that hold a generator of torch's replaced by copies."""
    attributes = getattr(sampler, "__dict__", {})
    changes = {}
    if "generator" in attributes and isinstance(attributes["generator"], torch.Generator | None):
        changes["generator"] = own(attributes["generator"])
    if "sampler" in attributes:
        changes["sampler"] = _private_sampler(attributes["sampler"], own)
    if changes:
        sampler = copy.copy(sampler)
        vars(sampler).update(changes)
    return sampler


class _Indices(Dataset[Any]):
    """Gives of each sample its index."""

    def __getitem__(self, index: Any) -> Any:
        return index


def _as_it_is(indices: list[Any]) -> list[Any]:
    return indices


def order_of(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader that gives, instead of the batches of ``loader``, their lists of indices."""
    order = copy.copy(loader)
    vars(order).update(
        dataset=_Indices(),
        collate_fn=_as_it_is,
        num_workers=0,
        timeout=0,
        pin_memory=False,
        prefetch_factor=None,
        persistent_workers=False,
        _iterator=None,
    )
    return order


def read_on(loader: DataLoader[Any], epochs: int) -> DataLoader[Any]:
    """The loader, its generator where it is after so many epochs; nothing is loaded for that."""
    if not isinstance(loader.dataset, IterableDataset):
        for _ in range(epochs):
            deque(order_of(loader), maxlen=0)
    return loader


def reordered(loader: DataLoader[Any], batches: Iterable[Any], seed: int | None = None) -> DataLoader[Any]:
    """A copy of ``loader`` that reads other batches, with a generator of its own if a seed is given."""
    other = copy.copy(loader)
    vars(other).update(batch_sampler=batches, _iterator=None)
    if seed is not None:
        vars(other).update(generator=torch.Generator().manual_seed(seed))
    return other


def gives_indices(loader: DataLoader[Any]) -> bool:
    """Whether the loader's batches are lists of indices, which can be dealt without reading anything."""
    return loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)
