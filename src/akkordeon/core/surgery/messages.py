"""The messages that change a row which is at work.

A gate learns with other settings:

session ──Change──▶ gate, which reports Changed

Gates come and go. Nothing is under way while they do, so that every batch goes back the way it came:

session ──Pause──▶ every sentinel, which reports AtRest once nothing of it is under way
session ──Rewire──▶ every gate, which reports Rewired;    the old last one ──Inherit──▶ the new last one
session ──Resume──▶ every sentinel ──ForgetBefore──▶ every gate of the new row;    Forward, or Cut ──▶ …
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from akkordeon.core.messages import Message
from akkordeon.core.plain_state import Applied

__all__ = ["OF_RECIPE", "Change", "Inherit", "Pause", "Resume", "Rewire"]

OF_RECIPE = ("optimizer", "staleness", "clip_norm")
"""Settings of a gate that are part of its recipe; the others are of the state that it goes on from."""


@dataclass(frozen=True, slots=True)
class Change(Message):
    """Learn with other settings from the next update on, or refuse all of them. To a gate.

    Batches in flight need not come back first: their gradients are taken on the weights of their forward.

    Attributes:
        settings: by name; see :func:`akkordeon.pipeline.surgery.change.changed`.
        number: comes back in the report :class:`akkordeon.core.surgery.reports.Changed`.
    """

    settings: Mapping[str, Any]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Pause(Message):
    """Begin nothing new until you are told to, and report when nothing is under way. To a sentinel."""


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """The pause is over: go on, with this row. To a sentinel, also to one that was not told to pause."""

    row: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rewire(Message):
    """This is the row now, and you are part of it, or not any more. To a gate of the old or the new row.

    Attributes:
        row: addresses of the gates, head first.
        from_last: you were the last: tell the one that is what was learned from.
    """

    row: tuple[str, ...]
    from_last: bool = False


@dataclass(frozen=True, slots=True)
class Inherit(Message):
    """You are the last gate of the row: this is what the row has learned from. From the one before."""

    applied: Mapping[str, Applied]
