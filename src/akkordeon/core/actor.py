"""An actor: an address, a mailbox, and one message at a time turned into effects.

``receive`` is a generator of effects; the engine carries each out as it is yielded. So a gate yields
the gradient for the gate before it and only then steps its optimizer: the other is already at work.
What can refuse a message comes before the first ``yield``, and carrying an effect out never throws
into the generator. Nothing here knows a thread, a clock or a socket: time comes in as ``now_s``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from akkordeon.core.generator import Use
from akkordeon.core.messages import Kind, Message

__all__ = ["Actor", "After", "Effect", "Mailbox", "Report", "Send", "Stop"]


class Send(NamedTuple):
    """Put ``message`` into the mailbox of the actor at address ``to``."""

    to: str
    message: Message


class After(NamedTuple):
    """Put ``message`` into my own mailbox in ``seconds``."""

    seconds: float
    message: Message


class Report(NamedTuple):
    """Hand ``record`` to whoever watches the session."""

    record: Any


class Stop(NamedTuple):
    """I am done: no further message will be handled."""


Effect = Send | After | Report | Stop


class Actor(ABC):
    """What an engine runs."""

    address: str
    may_block: bool = False
    """Whether ``receive`` may wait for the world outside (a stalled stream): engines give it a thread."""
    use: Use = Use.NONE
    """Of the process's random generator, in forwards and backwards: who may be at work at the same time."""

    @abstractmethod
    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Handle one message; an engine calls it for one message at a time."""

    def last_words(self) -> Iterator[Effect]:
        """What to leave behind when the actor failed and will handle nothing more."""
        return iter(())


class Mailbox:
    """What waits for an actor: by class, first in first out within a class.

    ::

        control     ─┐
        backward    ─┼─▶ the first class that has something,
        forward     ─┤   but evaluation at least every ``turn``-th time
        evaluation  ─┘

    Backward before forward keeps staleness and memory low (it is 1F1B); the guaranteed turn keeps
    validation from starving under any number of trainers.
    """

    __slots__ = ("_passed_over", "_queues", "turn")

    def __init__(self, turn: int = 8) -> None:
        self.turn = turn
        self._queues: tuple[deque[Message], ...] = tuple(deque() for _ in Kind)
        self._passed_over = 0  # times that evaluation waited while something else was handed out

    def put(self, message: Message) -> None:
        """Add a message behind those of its class."""
        self._queues[message.kind].append(message)

    def take(self) -> Message:
        """The next message to handle.

        Raises:
            IndexError: the mailbox is empty.
        """
        control, backward, forward, evaluation = self._queues
        if evaluation:
            if self._passed_over + 1 >= self.turn or not (control or backward or forward):
                self._passed_over = 0
                return evaluation.popleft()
            self._passed_over += 1
        if control:
            return control.popleft()
        if backward:
            return backward.popleft()
        return forward.popleft()

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __bool__(self) -> bool:
        control, backward, forward, evaluation = self._queues
        return bool(control or backward or forward or evaluation)
