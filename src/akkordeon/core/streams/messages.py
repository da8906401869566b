"""The events of a stream in which inputs and labels come apart; of others, pairs (x, y) are all there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from akkordeon.core.messages import EpochEnd, Item, Kind, Message, SourceFailed
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import PlainState, StageState

__all__ = ["Acknowledge", "Answer", "Event", "Kept", "Key", "Labelled", "Question", "Record", "TakeOver"]

Key = str | int
"""By which a label is matched with its inputs: a string, or a whole number of at least 0."""


@dataclass(frozen=True, slots=True)
class Question(Message, kind=Kind.FORWARD):
    """Inputs whose label is not known yet: predict them. Of a source; reader to sentinel.

    ``source``: for the reader to fill in: the state of a source that has one, after this was read.
    """

    key: Key
    x: Payload
    source: PlainState | None = None


@dataclass(frozen=True, slots=True)
class Answer(Message, kind=Kind.FORWARD):
    """The label of an earlier question: learn from both. Of a source; reader to sentinel.

    ``source``: as of :class:`Question`.
    """

    key: Key
    y: Any
    source: PlainState | None = None


@dataclass(frozen=True, slots=True)
class Labelled(Message, kind=Kind.FORWARD):
    """Inputs with their label, and a key by which they are known. Of a source; reader to sentinel.

    ``source``: as of :class:`Question`.
    """

    key: Key
    x: Payload
    y: Any
    source: PlainState | None = None


Record = Item | Labelled | Question | Answer
"""What a reader sends of what it has read."""

Event = Record | EpochEnd | SourceFailed
"""What a reader sends."""


@dataclass(frozen=True, slots=True)
class Acknowledge(Message):
    """What was read is done with, and need not be given again. Sentinel to reader.

    ``positions``: the states that the source had after each.
    """

    positions: tuple[PlainState, ...]


@dataclass(frozen=True, slots=True)
class Kept(Message):
    """What was read is in a checkpoint that nothing loses, as what comes is to be. Session to sentinel.

    ``until``: so many records, counted from the first; None for all up to now.
    """

    until: int | None = None


@dataclass(frozen=True, slots=True)
class TakeOver(Message, kind=Kind.BACKWARD):
    """Go on from what other gates have learned. Sentinel to last gate, from there to the first, and back.

    It goes the way of cuts, so that these have all of it or nothing.

    Attributes:
        asker: the sentinel.
        states: of the gates that it has not come to, head first.
    """

    asker: str
    states: tuple[StageState, ...]
