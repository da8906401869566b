"""The messages that follow when a gate is made anew: everybody who has something there hears of it.

session ──Restarted──▶ trainer ──ForgetBefore──▶ every gate;    Forward, with a new number ──▶ first gate
session ──Restarted──▶ evaluator ──ForgetBefore──▶ every gate;  Rewind ──▶ reader ──Rewound──▶ evaluator
session ──Restarted──▶ a replica's gate, where it is a shard;   Fetch ──▶ the shard

And when a sentinel is lost, behind the gradients that are on their way:

session ──SentinelLost──▶ last gate ──SentinelLost──▶ … ──SentinelLost──▶ first gate, which reports Learned
"""

from __future__ import annotations

from dataclasses import dataclass

from akkordeon.core.messages import Kind, Message, Refused
from akkordeon.core.plain_state import Applied

__all__ = ["ForgetBefore", "Restarted", "Rewind", "Rewound", "Save", "SentinelLost"]


@dataclass(frozen=True, slots=True)
class Restarted(Message):
    """A gate or shard was made anew from a snapshot: it has no batch, no cut and nobody who watches.

    ``refused``: the batch that the one before it raised on, which is not to be sent again.
    """

    gate: str
    refused: Refused | None = None


@dataclass(frozen=True, slots=True)
class ForgetBefore(Message):
    """Drop the batches, or the cuts, of this sender below a number, now and when they arrive. To gates.

    A gate that is made anew knows nothing of what it was told to forget; this is all that it needs to know.
    """

    sender: str
    number: int


@dataclass(frozen=True, slots=True)
class Save(Message):
    """Leave a snapshot of yourself now, if you ever do. From whoever keeps snapshots and has none."""


@dataclass(frozen=True, slots=True)
class Rewind(Message):
    """Read your source once more from the beginning of its ``epoch``-th time. Evaluator to reader."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Rewound(Message, kind=Kind.FORWARD):
    """What I read from here on is from the beginning. Reader to evaluator."""


@dataclass(frozen=True, slots=True)
class SentinelLost(Message, kind=Kind.BACKWARD):
    """A sentinel is gone without last words: forget it once what the last gate has learned from is through.

    ``applied``: which of its batches that gate had learned from, and so all others will have.
    """

    sentinel: str
    applied: Applied | None = None
