"""How the actors of a sentinel are made: its reader, which reads its source, and itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from torch import Tensor

from akkordeon.core.actor import Actor, Spawn
from akkordeon.core.addresses import reader_of
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.numerics.autocast import autocast_here
from akkordeon.core.payload import map_tensors, tensors
from akkordeon.core.plain_state import PlainState
from akkordeon.core.schedules import ASYNC, Schedule
from akkordeon.data.batches import Batches
from akkordeon.data.position import Place, SourcePosition, fast_forwarded, has_state
from akkordeon.data.sources import as_batches, gives_new_tensors, has_length, is_indexable
from akkordeon.data.streams.acknowledging import Acknowledging
from akkordeon.sentinels.checkpointer import Checkpointer
from akkordeon.sentinels.evaluator import Evaluator
from akkordeon.sentinels.reader import Reader
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Streaming, Training
from akkordeon.sentinels.streaming.drift import require_gates
from akkordeon.sentinels.streaming.reader import StreamReader
from akkordeon.sentinels.streaming.shadow import ShadowRow
from akkordeon.sentinels.streaming.streamer import Streamer
from akkordeon.sentinels.training.trainer import Trainer

__all__ = ["make_actors", "require_recipes"]


def require_recipes(taker: str, sentinels: object) -> None:
    """Refuse what is no list of sentinels; ``taker`` is the function that was given it."""
    if not isinstance(sentinels, Sequence):
        got = type(sentinels).__name__
        raise RecipeError(f"sentinels are given as a list, [Sentinel.train(…), …], got {got}")
    for sentinel in sentinels:
        if not isinstance(sentinel, Training | Evaluation):
            got = type(sentinel).__name__
            raise RecipeError(f"{taker} takes a sentinel, as Sentinel.train(…), got {got}")


def make_actors(
    sentinel: Training | Evaluation,
    address: str,
    name: str,
    row: tuple[str, ...],
    seed: int,
    start: PlainState | None = None,
    saves: bool = False,
    make_shadow: Callable[[], ShadowRow] | None = None,
    schedule: Schedule = ASYNC,
) -> tuple[Spawn, Spawn]:
    """What an engine needs to make the actors of a sentinel: its reader and itself.

    Args:
        sentinel: the recipe.
        address: of the sentinel.
        name: what reports call it.
        row: whom it talks to, head first.
        seed: of the session.
        start: what it goes on from.
        saves: whether it tells now and then where it is, if it has a place.
        make_shadow: makes gates that are as the recipe of the row has them.
        schedule: of the network.

    Raises:
        DataError: there is nothing it could read.
    """
    reader = reader_of(address)
    source = _source_of(sentinel, name, seed)
    recipe = _under_autocast(replace(sentinel, batches=()))  # data is read once
    own: Callable[[], Actor]
    if isinstance(recipe, Streaming):
        require_gates(recipe.drift, row)
        acknowledges = isinstance(source, Acknowledging)
        saves = saves and not (acknowledges or isinstance(sentinel.batches, Iterator))  # it comes once
        how = saves, acknowledges, make_shadow
        own = partial(Streamer, address, name, row, reader, recipe, start, *how)
    elif isinstance(recipe, Training):
        endless = not has_length(source)
        own = partial(Trainer, address, name, row, reader, recipe, endless, start, saves, schedule)
    elif recipe.role.keeps:
        own = partial(Checkpointer, address, name, row, reader, recipe, start)
    else:
        own = partial(Evaluator, address, name, row, reader, recipe, start, saves and recipe.role.has_place)
    return Spawn(reader, _reader_of(sentinel, source, reader, address, start)), Spawn(address, own)


def _source_of(sentinel: Training | Evaluation, name: str, seed: int) -> Any:
    """What its reader reads; looked at here, where errors reach the user."""
    try:
        if sentinel.loss is None:
            return _inputs(sentinel)
        pairs = sentinel.split is None and not isinstance(sentinel, Streaming)
        return as_batches(sentinel.batches, sentinel.batch_size, seed, pairs)
    except DataError as error:
        raise DataError(f"sentinel {name!r} has nothing to read: {error}") from error


def _under_autocast(sentinel: Training | Evaluation) -> Training | Evaluation:
    """The sentinel with a loss that runs under the autocast of whoever attaches it."""
    autocast = autocast_here()
    if sentinel.loss is None or not autocast:
        return sentinel
    return replace(sentinel, loss=autocast.around(sentinel.loss))


def _reader_of(
    sentinel: Training | Evaluation, source: Any, address: str, reads_for: str, start: PlainState | None
) -> Callable[[], Reader]:
    """How to make the reader of a sentinel."""
    is_training = isinstance(sentinel, Training)
    position = mark = None
    if start is not None:
        rounds = SourcePosition(Place(start.get("rounds", 0), 0))
        position = SourcePosition.from_plain(start["position"]) if is_training else rounds
        mark = start.get("source") if has_state(source) else None
    kind: Callable[..., Reader] = Reader
    if isinstance(sentinel, Streaming):
        acknowledge = source.acknowledge if isinstance(source, Acknowledging) else None
        kind = partial(StreamReader, acknowledge=acknowledge)
    return partial(
        kind,
        address,
        reads_for,
        _Opened(source, position, mark),
        sentinel.epochs if isinstance(sentinel, Training) else None if sentinel.role.repeats else 1,
        labelled=sentinel.loss is not None,
        may_block=not is_indexable(source),
        split=sentinel.split,
        copies=not gives_new_tensors(source),
        start=position,
        begin=None if mark is None else Place(*mark["place"]),
        state_of=source.state_dict if is_training and has_state(source) else None,
    )


class _Opened:
    """Opens a source epoch by epoch, for the first time where it was left.

    Args:
        source: of batches.
        position: what of it is done; None where nothing is.
        mark: a state of the source before that, and its place.
    """

    def __init__(self, source: Any, position: SourcePosition | None, mark: PlainState | None) -> None:
        self._source = source
        self._position = position
        self._mark = mark

    def __call__(self, epoch: int) -> Iterable[Any]:
        position, self._position = self._position, None
        if self._mark is not None and position is not None:
            self._source.load_state_dict(self._mark["state"])
        elif position is not None:
            self._source = fast_forwarded(self._source, position.place.epoch)
        if isinstance(self._source, Batches):
            return self._source.epoch(epoch)
        opened: Iterable[Any] = self._source
        return opened


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
