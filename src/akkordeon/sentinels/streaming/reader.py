"""The reader of a stream: of pairs, or of questions and answers, each with where the source is after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from akkordeon.core.actor import Effect
from akkordeon.core.messages import Message
from akkordeon.core.plain_state import PlainState
from akkordeon.core.streams.messages import Acknowledge, Answer, Key, Question
from akkordeon.sentinels.reader import END, Reader

__all__ = ["StreamReader"]


class StreamReader(Reader):
    """Reads as much as it was asked for, and tells the source what it need not give again.

    Args:
        *args: as those of :class:`Reader <akkordeon.sentinels.reader.Reader>`.
        acknowledge: of a source that wants to know which keys are done with.
        **kwargs: as ``args``.
    """

    def __init__(self, *args: Any, acknowledge: Callable[[Key], None] | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acknowledge = acknowledge

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """As any reader, and pass an :class:`Acknowledge` on."""
        if not isinstance(message, Acknowledge):
            yield from super().receive(message, now_s)
        elif self._acknowledge is not None:
            self._acknowledge(message.key)

    def _next_item(self) -> tuple[Any, PlainState | None]:
        """The next of the source, or the end, and the state of the source after it."""
        assert self._batches is not None, "it was opened"
        item = next(self._batches, END)
        return item, None if self._state_of is None else self._state_of()

    def _message(self, item: Any, state: PlainState | None) -> Message:
        if isinstance(item, Question):
            return Question(item.key, self._own(self._checked(item.x)), state)
        if isinstance(item, Answer):
            return Answer(item.key, self._own(item.y), state)
        return super()._message(item, state)
