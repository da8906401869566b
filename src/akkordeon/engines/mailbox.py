"""What waits for an actor: by class, first in first out within a class."""

from __future__ import annotations

from collections import deque

from akkordeon.core.messages import Kind, Message

__all__ = ["Mailbox"]


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
