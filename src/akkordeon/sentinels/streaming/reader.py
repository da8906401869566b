"""The reader of a stream: of pairs, or of questions and answers, each with where the source is after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from akkordeon.core.actor import Effect, Send
from akkordeon.core.messages import Message, Pull
from akkordeon.core.plain_state import PlainState
from akkordeon.core.streams.messages import Acknowledge, Answer, Labelled, Question
from akkordeon.sentinels.reader import END, IDLE, Reader

__all__ = ["StreamReader"]


class StreamReader(Reader):
    """Reads as much as it was asked for, and tells the source what it need not give again.

    Args:
        *args: as those of :class:`Reader <akkordeon.sentinels.reader.Reader>`.
        acknowledge: of a source that wants to know what is done with.
        **kwargs: as ``args``.
    """

    def __init__(
        self, *args: Any, acknowledge: Callable[[Sequence[PlainState]], None] | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._acknowledge = acknowledge
        self._is_idle = False

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """As any reader, and pass an :class:`Acknowledge` on."""
        if isinstance(message, Pull):
            yield from self._read_some(message.count)
        elif not isinstance(message, Acknowledge):
            yield from super().receive(message, now_s)
        elif self._acknowledge is not None:
            self._acknowledge(message.positions)

    def _read_some(self, count: int) -> Iterator[Effect]:
        """Read so many, but go back to the mailbox where the source has nothing for now."""
        for left in range(count, 0, -1):
            if self._over:
                return
            self._is_idle = False
            yield from self._read_one(stop_at_end=False)
            if self._is_idle:
                yield Send(self.address, Pull(left))
                return

    def _next_item(self) -> tuple[Any, PlainState | None]:
        """The next of the source, or the end, and the state of the source after it; None is none for now."""
        assert self._batches is not None, "it was opened"
        item = next(self._batches, END)
        self._is_idle = item is None
        return IDLE if item is None else item, None if self._state_of is None else self._state_of()

    def _message(self, item: Any, state: PlainState | None) -> Message:
        if isinstance(item, Labelled):
            return Labelled(item.key, self._own(self._checked(item.x)), self._own(item.y), state)
        if isinstance(item, Question):
            return Question(item.key, self._own(self._checked(item.x)), state)
        if isinstance(item, Answer):
            return Answer(item.key, self._own(item.y), state)
        return super()._message(item, state)
