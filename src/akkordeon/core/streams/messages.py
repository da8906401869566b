"""The events of a stream in which inputs and labels come apart; of others, pairs (x, y) are all there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from akkordeon.core.messages import EpochEnd, Item, Kind, Message, SourceFailed
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import PlainState

__all__ = ["Acknowledge", "Answer", "Event", "Key", "Question"]

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


Event = Item | Question | Answer | EpochEnd | SourceFailed
"""What a reader sends."""


@dataclass(frozen=True, slots=True)
class Acknowledge(Message):
    """What came under this key is done with, and need not be given again. Sentinel to reader."""

    key: Key
