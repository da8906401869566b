"""Sources of batches: tensors cut by slicing, loaders with their own randomness.

Letters: N samples, B samples of one batch, k the number of an epoch, counted from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from akkordeon.core.errors import DataError
from akkordeon.core.payload import map_nested

__all__ = [
    "Batches",
    "Tensors",
    "as_batches",
    "copied",
    "gives_new_tensors",
    "has_length",
    "is_indexable",
    "permutation",
    "private_loader",
]

Tensors: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What x or y of a batch may be; in a tuple or dict every tensor has the same length."""


# --- batches cut from tensors ------------------------------------------------------------------------


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
        DataError: x or y is no tensor, they differ in length or are empty, ``batch_size`` is below 1,
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
        if self.batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {self.batch_size}")
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
        if k < 0:
            raise DataError(f"epochs are counted from 0, got {k}")
        order = permutation(self.samples, self.seed, self.first_epoch + k) if self.shuffle else None
        cuts = (slice(b * self.batch_size, (b + 1) * self.batch_size) for b in range(len(self)))
        return ((_rows(self.x, cut, order), _rows(self.y, cut, order)) for cut in cuts)

    def take(self, n: int) -> Batches:
        """The first ``n`` samples (views).

        Raises:
            DataError: ``n`` is not between 1 and N.
        """
        if not 1 <= n <= self.samples:
            raise DataError(f"cannot take {n} of {self.samples} samples")
        return replace(self, x=_map(lambda t: t[:n], self.x), y=_map(lambda t: t[:n], self.y))

    def part(self, i: int, n: int) -> Batches:
        """The i-th of ``n`` parts: samples i, i + n, i + 2n, ...; every part shuffles in its own way.

        The parts are disjoint, together they are all samples, and their sizes differ by one at most.
        A part owns its samples: shipped to another process, it does not take the other parts along.

        Raises:
            DataError: ``i`` is not between 0 and n - 1, or there are fewer than ``n`` samples.
        """
        if not 0 <= i < n <= self.samples:
            raise DataError(f"cannot give part {i} of {n} of {self.samples} samples (parts count from 0)")
        x, y = (_map(lambda t: t[i::n].contiguous(), tensors) for tensors in (self.x, self.y))
        return replace(self, x=x, y=y, seed=_derived_seed(self.seed, i, n) if n > 1 else self.seed)

    def from_epoch(self, k: int) -> Batches:
        """The same batches from epoch ``k`` (counted from 0) on, to go on where another run ended.

        Raises:
            DataError: ``k`` is negative.
        """
        if k < 0:
            raise DataError(f"epochs are counted from 0, got {k}")
        return replace(self, first_epoch=k)

    def with_batch_size(self, batch_size: int) -> Batches:
        """The same samples in batches of another size, from epoch 0."""
        return replace(self, batch_size=batch_size)

    def with_seed(self, seed: int) -> Batches:
        """The same samples in other orders, from epoch 0."""
        return replace(self, seed=seed)


def _derived_seed(seed: int, *key: int) -> int:
    """A seed of 64 bits; unlike ``seed + k``, neighbouring seeds and keys have nothing in common."""
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=key)  # which refuses negative seeds
    return int(sequence.generate_state(1, np.uint64)[0])


def permutation(n: int, seed: int, *key: int) -> Tensor:
    """The numbers 0 to n - 1 in an order that seed and key alone decide."""
    generator = torch.Generator().manual_seed(_derived_seed(seed, *key))
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
    samples = max(lengths.values(), default=0)
    if samples == 0:
        raise DataError("x and y hold no samples (0); a source needs at least one")
    return samples


# --- sources of other forms --------------------------------------------------------------------------


def as_batches(source: object, batch_size: int, seed: int = 0, pairs: bool = True) -> Iterable[Any]:
    """Makes of ``source`` something that can be iterated to get (x, y) batches.

    Args:
        source: a tuple (x, y) of tensors, which is cut into :class:`Batches`; a ``DataLoader``, which is
            made private (:func:`private_loader`); :class:`Batches` or any other iterable of batches (a
            list, a generator, an endless stream), which stays as it is.
        batch_size: for a tuple (x, y) only: everything else has batches already.
        seed: for a tuple (x, y) and a ``DataLoader``.
        pairs: whether the batches of a list must be pairs, and not of another form, to be split later.

    Raises:
        DataError: ``source`` cannot be a source of batches.
    """
    if isinstance(source, DataLoader):
        return private_loader(source, seed)
    if isinstance(source, tuple) and _is_examples(source):
        x, y = source
        return Batches(x, y, batch_size, seed=seed)
    if isinstance(source, Dataset) and not isinstance(source, Iterable):
        raise DataError(
            f"{type(source).__name__} is a data set, which gives one sample at a time; "
            f"have a DataLoader make batches of it: DataLoader(…, batch_size={batch_size}, shuffle=True)"
        )
    if isinstance(source, list | tuple):
        _check_batches(source, pairs)
        return source
    # These can be iterated as well, but never to (x, y) batches.
    if not isinstance(source, Iterable) or isinstance(source, Tensor | str | bytes | Mapping):
        raise DataError(
            f"a {type(source).__name__} is no source of batches; "
            "give (x, y), Batches, a DataLoader or an iterable of (x, y) batches"
        )
    return source


def is_indexable(source: object) -> bool:
    """Whether the batches of ``source`` are all in memory, so that reading them can never stall."""
    return isinstance(source, Batches | list | tuple)


def has_length(source: object) -> bool:
    """Whether ``source`` says how many batches it gives, and so that they come to an end."""
    try:
        return len(source) >= 0  # type: ignore[arg-type]  # what has no length raises
    except TypeError:  # a loader of a stream has a __len__ that raises
        return False


def gives_new_tensors(source: object) -> bool:
    """Whether a batch of ``source`` surely stays as it is when the next one is read.

    In a plain loop a batch is done with by then; here some are kept, and an iterable that fills one array
    again and again would change them.
    """
    if isinstance(source, DataLoader):
        return source.num_workers > 0 or source.collate_fn is default_collate
    return is_indexable(source)


def copied(batch: Any) -> Any:
    """A batch with copies of all tensors and arrays in it."""
    if isinstance(batch, Tensor):
        return batch.clone()
    return batch.copy() if isinstance(batch, np.ndarray) else map_nested(copied, batch)


def _is_examples(source: tuple[object, ...]) -> bool:
    if len(source) != 2 or not isinstance(source[0], Tensor | tuple | dict):
        return False
    if isinstance(source[0], tuple) and isinstance(source[1], tuple):
        raise DataError(
            "a tuple of 2 tuples may be (x, y) or two batches; "
            "write Batches(x, y, batch_size) for the one and a list of batches for the other"
        )
    return True


def _check_batches(batches: Sequence[object], pairs: bool) -> None:
    if not batches:
        raise DataError(f"a {type(batches).__name__} of 0 batches is no source; give at least one batch")
    for b, batch in enumerate(batches):
        if pairs and (not isinstance(batch, list | tuple) or len(batch) != 2):
            if isinstance(batch, np.ndarray):
                raise DataError(
                    f"item {b} of the {type(batches).__name__} is a NumPy ndarray; "
                    "give (x, y) as tensors: torch.from_numpy(…)"
                )
            raise DataError(
                f"item {b} of the {type(batches).__name__} is a {type(batch).__name__}, not a batch (x, y); "
                "tensors that are to be cut into batches are given as a tuple (x, y), "
                "and batches of another form with split=, a function from a batch to (x, y)"
            )


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
    fresh = torch.Generator().manual_seed(_derived_seed(seed))
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
