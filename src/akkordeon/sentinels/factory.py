"""How the actors of a sentinel are made: its reader, which reads its source, and itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from torch import Tensor

from akkordeon.core.actor import Actor, Spawn
from akkordeon.core.addresses import reader_of
from akkordeon.core.autocast import autocast_here
from akkordeon.core.errors import DataError
from akkordeon.core.payload import map_tensors, tensors
from akkordeon.data.batches import Batches
from akkordeon.data.sources import as_batches, gives_new_tensors, has_length, is_indexable
from akkordeon.sentinels.evaluator import Evaluator
from akkordeon.sentinels.reader import Reader
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Training
from akkordeon.sentinels.trainer import Trainer

__all__ = ["make_actors"]


def make_actors(
    sentinel: Training | Evaluation, address: str, name: str, row: tuple[str, ...], seed: int
) -> tuple[Spawn, Spawn]:
    """What an engine needs to make the actors of a sentinel: its reader and itself.

    Raises:
        DataError: there is nothing it could read.
    """
    reader = reader_of(address)
    source = _source_of(sentinel, name, seed)
    recipe = _under_autocast(replace(sentinel, batches=()))  # data is read once
    own: Callable[[], Actor]
    if isinstance(recipe, Training):
        own = partial(Trainer, address, name, row, reader, recipe, endless=not has_length(source))
    else:
        own = partial(Evaluator, address, name, row, reader, recipe)
    return Spawn(reader, _reader_of(sentinel, source, reader, address)), Spawn(address, own)


def _source_of(sentinel: Training | Evaluation, name: str, seed: int) -> Any:
    """What its reader reads; looked at here, where errors reach the user."""
    try:
        if sentinel.loss is None:
            return _inputs(sentinel)
        return as_batches(sentinel.batches, sentinel.batch_size, seed, pairs=sentinel.split is None)
    except DataError as error:
        raise DataError(f"sentinel {name!r} has nothing to read: {error}") from error


def _under_autocast(sentinel: Training | Evaluation) -> Training | Evaluation:
    """The sentinel with a loss that runs under the autocast of whoever attaches it."""
    autocast = autocast_here()
    if sentinel.loss is None or not autocast:
        return sentinel
    return replace(sentinel, loss=autocast.around(sentinel.loss))


def _reader_of(
    sentinel: Training | Evaluation, source: Any, address: str, reads_for: str
) -> Callable[[], Reader]:
    """How to make the reader of a sentinel."""
    open_epoch = source.epoch if isinstance(source, Batches) else lambda _: source
    times = sentinel.epochs if isinstance(sentinel, Training) else sentinel.rounds
    return partial(
        Reader,
        address,
        reads_for,
        open_epoch,
        times,
        labelled=sentinel.loss is not None,
        may_block=not is_indexable(source),
        split=sentinel.split,
        copies=not gives_new_tensors(source),
    )


def _inputs(sentinel: Sentinel) -> Any:
    """The batches of a predicting sentinel: slices of tensors, or an iterable as it is."""
    inputs, size = sentinel.batches, sentinel.batch_size
    if not isinstance(inputs, Tensor | tuple | dict):
        _check_input_batches(inputs)
        return inputs
    if any(tensor.dim() == 0 for tensor in tensors(inputs)):
        raise DataError("a tensor of its inputs has no dimensions; give (N, …) tensors")
    if not len(inputs):
        return [inputs] if isinstance(inputs, Tensor) else inputs
    lengths = {len(tensor) for tensor in tensors(inputs)}
    if len(lengths) > 1:
        raise DataError(f"its inputs differ in length: {', '.join(map(str, sorted(lengths)))}")
    cuts = [slice(i, i + size) for i in range(0, max([1, *lengths]), size)]
    return [map_tensors(itemgetter(cut), inputs) for cut in cuts]


def _check_input_batches(inputs: object) -> None:
    """Refuse what is no iterable of batches, and what is one only by its looks."""
    if isinstance(inputs, np.ndarray):
        raise DataError("its inputs are a NumPy ndarray; give a tensor: torch.from_numpy(…)")
    can_be_read = isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__")
    if not can_be_read or isinstance(inputs, str | bytes | Mapping | type):
        got = type(inputs).__name__
        raise DataError(f"a {got} is no source of inputs; give (N, …) tensors or an iterable of batches")
