"""What can be a source of batches, and what is known of each kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from akkordeon.core.errors import DataError
from akkordeon.core.payload import map_nested, samples, tensors
from akkordeon.data.batches import Batches
from akkordeon.data.loaders import private_loader

__all__ = ["as_batches", "copied", "gives_new_tensors", "has_length", "is_indexable", "samples_of"]


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
    for b, batch in enumerate(batches if pairs else ()):
        if not isinstance(batch, list | tuple) or len(batch) != 2:
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
        if isinstance(batch[1], Tensor) and batch[1].dim() == 0:
            raise DataError(
                f"item {b} of the {type(batches).__name__} has one label: that gives single samples, "
                "not batches; wrap it in a DataLoader, or give (x, y) as tensors"
            )


def samples_of(source: Any) -> int | None:
    """How many samples one reading gives, where that can be known without reading; None otherwise."""
    if isinstance(source, Batches):
        return source.samples
    if isinstance(source, tuple) and _is_examples(source):
        return samples(source[0])
    if isinstance(source, list | tuple) and all(map(_is_pair, source)):
        return sum(samples(x) for x, _ in source)
    return None


def _is_pair(batch: object) -> bool:
    """Whether a batch is (x, y), and has not yet to be split."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        return False
    return isinstance(batch[0], Tensor | tuple | list | dict) and next(tensors(batch[0]), None) is not None
