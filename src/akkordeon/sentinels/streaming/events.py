"""Events of a stream that were read, as plain data."""

from __future__ import annotations

from typing import Any

from akkordeon.core.messages import EpochEnd, Item
from akkordeon.core.streams.messages import Answer, Event, Labelled, Question

__all__ = ["as_plain", "from_plain"]


def as_plain(event: Event) -> list[Any]:
    """It as plain data."""
    match event:
        case Item(x, y):
            return ["pair", x, y]
        case Labelled(key, x, y):
            return ["labelled", key, x, y]
        case Question(key, x):
            return ["question", key, x]
        case Answer(key, y):
            return ["answer", key, y]
        case _:
            return ["end"]


def from_plain(plain: list[Any]) -> Event:
    """Make it again."""
    kind, *fields = plain
    kinds = {"pair": Item, "labelled": Labelled, "question": Question, "answer": Answer}
    return kinds[kind](*fields) if fields else EpochEnd(True)
