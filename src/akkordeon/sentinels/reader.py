"""The reader: it pulls batches from a sentinel's source, so that a stalled source stalls nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from akkordeon.core.actor import Actor, Effect, Send, Stop
from akkordeon.core.errors import DataError, ProtocolError
from akkordeon.core.messages import Close, EpochEnd, Item, SourceFailed
from akkordeon.core.payload import Payload, itself, map_tensors, tensors
from akkordeon.data.sources import copied

__all__ = ["Reader"]

_END = object()
"""Stands for the end of an epoch: a StopIteration that anything but the source raises is an error."""


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
    ) -> None:
        self.address = address
        self.may_block = may_block
        self._sentinel = sentinel
        self._open_epoch = open_epoch
        self._epochs = epochs
        self._labelled = labelled
        self._split = split
        self._copies = copies
        self._epoch = 0
        self._read = 0
        self._batches: Iterator[Any] | None = None
        self._over = False

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Read on a :class:`Pull`; leave on a :class:`Close`."""
        if isinstance(message, Close):
            self._batches = None
            yield Stop()
            return
        for _ in range(message.count):
            if self._over or message.epoch not in (None, self._epoch):
                return
            yield from self._read_one(stop_at_end=message.epoch is not None)

    def _read_one(self, stop_at_end: bool) -> Iterator[Effect]:
        """One batch, and before it the end of an epoch where that comes first."""
        while not self._over:
            try:
                if self._batches is None:
                    self._batches = iter(self._open_epoch(self._epoch))
                item = next(self._batches, _END)
                message = None if item is _END else self._item(item)
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

    def _end_epoch(self) -> Iterator[Effect]:
        if self._read == 0:
            self._over = True
            again = " again; give a source that can be read more than once" if self._epoch else ""
            reason = f"its source gave no batches{again} (epoch {self._epoch + 1})"
            yield Send(self._sentinel, SourceFailed(DataError(reason)))
            return
        self._batches, self._read = None, 0
        self._epoch += 1
        self._over = self._epochs is not None and self._epoch >= self._epochs
        yield Send(self._sentinel, EpochEnd(last=self._over))

    def _item(self, item: Any) -> Item:
        if not self._labelled:
            return Item(self._own(self._checked(item)), None)
        if self._split is not None:
            item, source = self._split(item), "split must give a pair (x, y)"
        else:
            source = "its source must give (x, y) pairs"
        if not isinstance(item, tuple | list) or len(item) != 2:
            hint = "" if self._split else "; for batches of another form give split=, a function to (x, y)"
            raise DataError(f"{source}, got {_what(item)} as batch {self._read}{hint}")
        x, y = item
        return Item(self._own(self._checked(x)), self._own(y))

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
