"""The messages between a replica's gates and the parameter shards (of Downpour), each position on its own.

    gate ──Push──▶ shard        gate ──Fetch──▶ shard ──Parameters──▶ gate
                                gate ──Push──▶ shard ──Dropped──▶ gate ──Refused──▶ sentinel

Where a position has several shards, they are the front and its parts:

    part ──Parameters──▶ front, with each cut
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from akkordeon.core.messages import Batch, CutId, Fault, Kind, Message

__all__ = ["Dropped", "Fetch", "Left", "Parameters", "Push", "Settle", "Settled"]


@dataclass(frozen=True, slots=True)
class Fetch(Message, kind=Kind.BACKWARD):
    """Send me the weights you have. Replica's gate to shard.

    ``is_first``: the asker has nothing of you yet; what you kept of another under its address is of no use.
    """

    asker: str
    is_first: bool = False


@dataclass(frozen=True, slots=True)
class Parameters(Message, kind=Kind.BACKWARD):
    """A shard's trainable weights, and how many updates it had applied. Shard to replica's gate.

    Where a position is split, also part to front, with every ``cut``: no weights if the front has them.
    ``push_every``: updates between two pushes from now on, where the shard is the one to say so.
    ``buffers``: the shard's, with the first weights that a gate is lent.
    ``since``: not the weights but what to add, compressed, to those of this version, which came last.
    ``scales``: as those of a push.
    """

    shard: str
    version: int
    payload: tuple[Tensor, ...]
    push_every: int | None = None
    buffers: dict[str, Any] = field(default_factory=dict)
    cut: CutId | None = None
    since: int | None = None
    scales: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Push(Message, kind=Kind.BACKWARD):
    """What a replica's gate gathered since its last push: sums of gradients, or differences of weights.

    Args:
        asker: the gate.
        version: of the shard's weights that the oldest gradient in it goes back to.
        steps: batches in it.
        payload: one tensor for each trainable weight, perhaps compressed; None where there is nothing.
        scales: what to multiply the tensors by, where they were compressed to whole numbers.
        buffers: the module's buffers by name, such as running statistics, and extra state, as the replica has
            them.
        fetch: send me the weights that come of it.
        batches: whose gradients are in it.
    """

    asker: str
    version: int
    steps: int
    payload: tuple[Tensor | None, ...]
    scales: tuple[float, ...] | None = None
    buffers: dict[str, Any] = field(default_factory=dict)
    fetch: bool = False
    batches: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped(Message, kind=Kind.BACKWARD):
    """A shard did not apply a push, and is as it was before. Shard to replica's gate.

    Args:
        shard: who says so.
        batches: that were in it.
        fault: why.
        reason: why, in words.
        in_a_row: pushes of that gate dropped since one was applied, those too stale not counted.
    """

    shard: str
    batches: tuple[Batch, ...]
    fault: Fault
    reason: str
    in_a_row: int


@dataclass(frozen=True, slots=True)
class Left(Message, kind=Kind.BACKWARD):
    """A replica's gate has ended, and nothing of it is on its way: keep nothing for it. Session to shard."""

    by: str


@dataclass(frozen=True, slots=True)
class Settle(Message, kind=Kind.BACKWARD):
    """Bring all you gathered to where cuts see it, and tell me. Trainer to gate, and that to its shard.

    ``number``: comes back in the answer.
    """

    asker: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Settled(Message, kind=Kind.BACKWARD):
    """All that was sent before :class:`Settle` has been applied."""

    by: str
    number: int = 0
