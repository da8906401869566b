"""The reader: it pulls batches from a sentinel's source, so that a stalled source stalls nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from akkordeon.core.actor import Actor, Effect, Send, Stop
from akkordeon.core.checkpoint_messages import AllRead, Locate
from akkordeon.core.errors import DataError, ProtocolError
from akkordeon.core.messages import Close, EpochEnd, Item, Message, SourceFailed
from akkordeon.core.payload import Payload, itself, map_tensors, tensors
from akkordeon.core.plain_state import PlainState
from akkordeon.core.recovery.messages import Rewind, Rewound
from akkordeon.data.position import Place, SourcePosition, unmoved_generator
from akkordeon.data.sources import copied

__all__ = ["END", "IDLE", "READ_AHEAD", "Reader"]

STATE_EVERY = 16
"""Batches from one state of a source that has one to the next; those since are read again."""

READ_AHEAD = 2
"""Batches are asked for in blocks of as many as may be in flight; so many blocks lie ahead at most."""

END = object()
"""Stands for the end of an epoch: a StopIteration that anything but the source raises is an error."""

IDLE = object()
"""Stands for nothing to read for now."""


class Reader(Actor):
    """Reads as many batches as it was asked for, epoch after epoch.

    Args:
        address: its own.
        sentinel: address of the sentinel it reads for.
        open_epoch: gives the iterable of an epoch, numbered from 0.
        epochs: how often to read the source through; None for ever.
        labelled: whether the source gives (x, y) pairs, or x alone.
        may_block: whether reading may wait for something outside.
        split: makes (x, y) of what the source gives; None where it gives that.
        copies: whether a batch must be copied, as reading the next may change it.
        start: what of the source is not to be read again.
        begin: where the source is; at the beginning of the epoch of ``start`` if not given.
        state_of: gives the state of a source that has one.
    """

    def __init__(
        self,
        address: str,
        sentinel: str,
        open_epoch: Callable[[int], Iterable[Any]],
        epochs: int | None,
        labelled: bool = True,
        may_block: bool = True,
        split: Callable[[Any], Any] | None = None,
        copies: bool = False,
        start: SourcePosition | None = None,
        begin: Place | None = None,
        state_of: Callable[[], PlainState] | None = None,
    ) -> None:
        self.address = address
        self.may_block = may_block
        self._sentinel = sentinel
        self._open_epoch = open_epoch
        self._epochs = epochs
        self._labelled = labelled
        self._split = split
        self._copies = copies
        self._start = start or SourcePosition()
        self._state_of = state_of
        self._epoch, self._read = begin or Place(self._start.place.epoch, 0)
        self._batches: Iterator[Any] | None = None
        self._over = epochs is not None and self._epoch >= epochs
        self._reads_once = False  # the source is an iterator: what it gave is gone

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Read on a :class:`Pull`; begin again on a :class:`Rewind`; leave on a :class:`Close`."""
        if isinstance(message, Close):
            self._batches = None
            yield Stop()
            return
        if isinstance(message, Locate):  # all that was asked for is read by now
            yield Send(self._sentinel, AllRead())
            return
        if isinstance(message, Rewind):
            yield from self._rewind(message.epoch)
            return
        for _ in range(message.count):
            if self._over or message.epoch not in (None, self._epoch):
                return
            yield from self._read_one(stop_at_end=message.epoch is not None)

    def _rewind(self, epoch: int) -> Iterator[Effect]:
        yield Send(self._sentinel, Rewound())
        if self._reads_once:
            self._over = True
            reason = (
                "a gate was made anew in the middle of a round, and its source is an iterator, which can be "
                "read only once; give one that can be read again"
            )
            yield Send(self._sentinel, SourceFailed(DataError(reason)))
            return
        self._batches, self._read, self._epoch, self._over = None, 0, epoch, False

    def _read_one(self, stop_at_end: bool) -> Iterator[Effect]:
        """One batch, and before it the end of an epoch where that comes first."""
        while not self._over:
            try:
                if self._batches is None:
                    self._open()
                item, state = self._next_item()
                if item is IDLE:
                    return
                message = None
                if item is not END:
                    message = self._message(item if self._split is None else self._split(item), state)
            except Exception as error:
                self._over = True
                yield Send(self._sentinel, SourceFailed(error))
                return
            if message is None:
                yield from self._end_epoch()
                if stop_at_end:
                    return
                continue
            self._read += 1
            yield Send(self._sentinel, message)
            return

    def _open(self) -> None:
        """Begin an epoch, after what was done of it before."""
        self._batches = iter(self._open_epoch(self._epoch))
        if self._here < self._start.place:
            with unmoved_generator():
                while self._here < self._start.place and next(self._batches, END) is not END:
                    self._read += 1

    @property
    def _here(self) -> Place:
        return Place(self._epoch, self._read)

    def _next_item(self) -> tuple[Any, PlainState | None]:
        """The next batch that is not done, or the end, and now and then the state of the source before it."""
        assert self._batches is not None, "it was opened"
        while True:
            state = None
            if self._state_of is not None and self._read % STATE_EVERY == 0:
                state = self._state_of()
            item = next(self._batches, END)
            if item is END or not self._start.done or self._here not in self._start.done:
                return item, state
            self._read += 1

    def _end_epoch(self) -> Iterator[Effect]:
        if self._read == 0:
            self._over = True
            again = " again; give a source that can be read more than once" if self._epoch else ""
            reason = f"its source gave no batches{again} (epoch {self._epoch + 1})"
            yield Send(self._sentinel, SourceFailed(DataError(reason)))
            return
        was_done = self._epoch < self._start.place.epoch
        self._batches, self._read = None, 0
        self._epoch += 1
        self._over = self._epochs is not None and self._epoch >= self._epochs
        if not was_done:
            yield Send(self._sentinel, EpochEnd(last=self._over))

    def _message(self, item: Any, state: PlainState | None) -> Message:
        """What it sends of an item, which was split."""
        if not self._labelled:
            return Item(self._own(self._checked(item)), None, state)
        if not isinstance(item, tuple | list) or len(item) != 2:
            must = "split must give a pair (x, y)" if self._split else "its source must give (x, y) pairs"
            hint = "" if self._split else "; for batches of another form give split=, a function to (x, y)"
            raise DataError(f"{must}, got {_what(item)} as batch {self._read}{hint}")
        x, y = item
        return Item(self._own(self._checked(x)), self._own(y), state)

    def _own(self, part: Any) -> Any:
        return copied(part) if self._copies else part

    def _checked(self, x: Any) -> Payload:
        """The inputs as a payload."""
        try:
            payload = map_tensors(itself, x)
        except ProtocolError as error:
            raise DataError(f"the inputs of batch {self._read} cannot travel: {error}") from None
        if next(tensors(payload), None) is None:
            raise DataError(f"the inputs of batch {self._read} are {_what(x)}; there is no tensor in them")
        return payload


def _what(item: Any) -> str:
    size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    return f"a {type(item).__name__}{size}"
