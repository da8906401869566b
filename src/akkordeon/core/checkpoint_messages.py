"""What a sentinel that takes checkpoints and the others tell each other; its cuts are as everybody's."""

from __future__ import annotations

from dataclasses import dataclass

from akkordeon.core.messages import Kind, Message
from akkordeon.core.plain_state import Applied, PlainState

__all__ = ["AllRead", "GoOn", "Joined", "Locate", "Located", "Parted"]


@dataclass(frozen=True, slots=True)
class Joined(Message):
    """A sentinel is part of the network now: checkpoints are to have its place. Session to checkpointer."""

    sentinel: str


@dataclass(frozen=True, slots=True)
class Parted(Message):
    """A sentinel has ended, and answers no more. Session to checkpointer."""

    sentinel: str


@dataclass(frozen=True, slots=True)
class Locate(Message):
    """Say where you are in what you do. Checkpointer to sentinel, which asks its reader on.

    Attributes:
        asker: who wants to know.
        hold: come to rest first, with nothing under way, and begin nothing new before you are told to.
        applied: which of your batches the weights have learned from that are being kept.
        number: of the question, which comes back with the answer.
        versions: of the weights that are being kept, tail first.
    """

    asker: str
    hold: bool = False
    applied: Applied | None = None
    number: int = 0
    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Located(Message):
    """Where a sentinel is; see :class:`Locate`."""

    by: str
    state: PlainState
    number: int = 0


@dataclass(frozen=True, slots=True)
class AllRead(Message, kind=Kind.FORWARD):
    """All that was asked for is read. Reader to sentinel, behind the batches, which it must not overtake."""


@dataclass(frozen=True, slots=True)
class GoOn(Message):
    """The rest that ``asker`` had asked for is over, and so is that of a start. Checkpointer to sentinel.

    ``asker``: nobody where it is the session that sends it.
    """

    asker: str = ""
