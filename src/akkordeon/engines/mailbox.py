"""What waits for an actor: by class, first in first out within a class, or sentinels in turn."""

from __future__ import annotations

from collections import deque

from akkordeon.core.messages import Message, batch_of

__all__ = ["FairQueue", "Mailbox"]


class FairQueue:
    """Batches of sentinels, each of which has its turn: one from each that has any, again and again.

    Of one sentinel they keep their order. It is as much of a deque as a :class:`Mailbox` needs.
    """

    __slots__ = ("_of", "_turns")

    def __init__(self) -> None:
        self._of: dict[str, deque[Message]] = {}
        self._turns: deque[str] = deque()

    def append(self, message: Message) -> None:
        """Add a message behind those of its sentinel, which stands behind all others if it had none."""
        batch = batch_of(message)
        sentinel = "" if batch is None else batch.sentinel
        waiting = self._of.get(sentinel)
        if waiting is None:
            waiting = self._of[sentinel] = deque()
            self._turns.append(sentinel)
        waiting.append(message)

    def popleft(self) -> Message:
        """The next message of the sentinel whose turn it is."""
        sentinel = self._turns.popleft()
        waiting = self._of[sentinel]
        message = waiting.popleft()
        if waiting:
            self._turns.append(sentinel)
        else:
            del self._of[sentinel]
        return message

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __bool__(self) -> bool:
        return bool(self._of)


class Mailbox:
    """What waits for an actor: by class, first in first out within a class.

    ::

        control     ─┐
        backward    ─┼─▶ the first class that has something,
        forward     ─┤   but evaluation at least every ``turn``-th time
        evaluation  ─┘

    Backward before forward keeps staleness and memory low (it is 1F1B); the guaranteed turn keeps
    validation from starving under any number of trainers.

    Args:
        turn: evaluation is passed over at most so often, less one.
        fair: sentinels take turns with their forwards, however many of each wait.
    """

    __slots__ = ("_passed_over", "_queues", "turn")

    def __init__(self, turn: int = 8, fair: bool = False) -> None:
        self.turn = turn
        forward: deque[Message] | FairQueue = FairQueue() if fair else deque()
        self._queues: tuple[deque[Message] | FairQueue, ...] = (deque(), deque(), forward, deque())
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
