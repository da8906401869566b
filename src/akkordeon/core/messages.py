"""The protocol: every message that travels between actors, and what can travel in it.

A batch goes round like this (S a sentinel, R its reader, 0 1 2 the gates of a row):

    R ──Item──▶ S ──Forward──▶ 0 ──Forward──▶ 1 ──Forward──▶ 2 ──Forward──▶ S     loss
                S ◀──Backward── 0 ◀──Backward── 1 ◀──Backward── 2 ◀──Backward── S     update

A cut goes the way of the backwards, so every gate pins its weights after the same set of batches:

                S ◀────Cut──── 0 ◀────Cut──── 1 ◀────Cut──── 2 ◀────Cut──── S

What gates and parameter shards tell each other is in :mod:`akkordeon.core.shard_messages`.

Messages are frozen; a tensor in a message is never written to, by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, ClassVar, NamedTuple

from torch import Tensor

from akkordeon.core.errors import ProtocolError
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import Applied, LearnerState, PlainState

__all__ = [
    "Attach",
    "Backward",
    "Batch",
    "Close",
    "Cut",
    "CutId",
    "Detach",
    "Due",
    "EpochEnd",
    "Evaluate",
    "Export",
    "Exported",
    "Fault",
    "Forget",
    "Forward",
    "Item",
    "Kind",
    "Message",
    "Probe",
    "Pull",
    "Refused",
    "Release",
    "Scored",
    "Signed",
    "SourceFailed",
    "Tick",
    "Watch",
    "batch_of",
    "describe",
]


Signed = Annotated[int, "of either sign"]
"""A number that may be negative; all others in messages are not."""


class Kind(IntEnum):
    """The class of a message. Mailboxes hand out lower classes first, and each class in order."""

    CONTROL = 0
    BACKWARD = 1
    FORWARD = 2
    EVALUATION = 3


class Batch(NamedTuple):
    """The identity of a batch: who sent it, and its place in what that sentinel sent."""

    sentinel: str
    number: int


class CutId(NamedTuple):
    """The identity of a cut: who asked for it, and its place in what that actor asked for."""

    asker: str
    number: int


class Fault(IntEnum):
    """Why a batch was refused."""

    FORM = 0
    """The module cannot work on a payload of this shape or dtype: none of this form ever worked."""
    NOT_FINITE = 1
    """An output, a loss or a gradient is NaN or infinite."""
    TOO_STALE = 2
    """The gradient is older than the network allows."""
    UNKNOWN = 3
    """The batch is not in the stash (or is there twice)."""
    TOO_MANY = 4
    """More batches in flight than the network allows."""
    RAISED = 5
    """The module raised on a payload of a form that it has worked on, or the gate on the batch."""
    LOST = 6
    """It was in flight in a gate that is gone, and the one in its place does not know it."""
    MALFORMED = 7
    """The message is of no kind that the receiver takes, or a field of it is not what it should be."""
    TOO_LARGE = 8
    """The payload has more bytes than the network allows."""


@dataclass(frozen=True, slots=True)
class Message:
    """What every message is: frozen, and of one :class:`Kind`."""

    kind: ClassVar[Kind] = Kind.CONTROL

    def __init_subclass__(cls, kind: Kind | None = None) -> None:
        """Take the class of a message, as in ``class Cut(Message, kind=Kind.BACKWARD)``."""
        if kind is not None:  # None: one of control, or the class made anew with slots
            cls.kind = kind


# ── training ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Forward(Message, kind=Kind.FORWARD):
    """The output of whoever sent it, on its way to the tail of the row and from there to the sentinel.

    Attributes:
        batch: whose.
        payload: the output.
        samples: in the batch, as its sentinel counts them.
        norm: of the latest whole gradient that the first gate knew; 0 where it knew none, or nobody clips.
        after: where the row computes on one version, the batch that the first gate had handled last; then the
            same of the oldest version that a batch which arrives later may need.
    """

    batch: Batch
    payload: Payload
    samples: int = 0
    norm: float = 0.0
    after: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class Backward(Message, kind=Kind.BACKWARD):
    """The gradient of the loss by the receiver's output, on its way to the head and then the sentinel.

    Attributes:
        batch: whose.
        payload: the gradient.
        staleness: τ of every gate it has passed, tail first.
        squared_norm: of the gradients of the gates it has passed, where their whole norm is clipped.
    """

    batch: Batch
    payload: Payload | None
    staleness: tuple[int, ...] = ()
    squared_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """A gate did not take a message of this batch, and is as it was before. Gate to sentinel.

    ``error``: what the module raised, where that is why.
    """

    batch: Batch
    gate: str
    fault: Fault
    reason: str
    error: Exception | None = None

    def __post_init__(self) -> None:
        """A refusal without a reason helps nobody."""
        if not self.reason:
            raise ProtocolError(f"{self.gate} refused {self.batch} without a reason")


@dataclass(frozen=True, slots=True)
class Forget(Message):
    """Drop what you hold of this batch, or (``number=None``) of this sender, now and when it arrives.

    ``sender``: a sentinel; to a shard, a replica's gate.
    """

    sender: str
    number: int | None = None


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Cut(Message, kind=Kind.BACKWARD):
    """Pin the weights and buffers you have now; collects the versions pinned, tail first.

    Attributes:
        cut: whose.
        versions: of those that have pinned theirs.
        whole: pin also what the stage learns with, to make it again from.
        applied: of each sentinel's batches, which the gates have learned from: of a whole one the last gate
            says so, and shards do not know.
        averaged: of stages that keep an average of their weights, pin that in their place.
    """

    cut: CutId
    versions: tuple[int, ...] = ()
    whole: bool = False
    applied: Mapping[str, Applied] | None = None
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class Evaluate(Message, kind=Kind.EVALUATION):
    """Work on this in evaluation mode, on the weights pinned for the cut, and pass the output on."""

    batch: Batch
    payload: Payload
    cut: CutId


@dataclass(frozen=True, slots=True)
class Export(Message, kind=Kind.EVALUATION):
    """Send the one who asked for the cut the weights and buffers pinned for it."""

    cut: CutId


@dataclass(frozen=True, slots=True)
class Exported(Message):
    """The weights and buffers that a gate pinned for a cut, by their names in the module.

    ``learner``: what it learns with, where the cut was a whole one, or why that cannot be had.
    """

    cut: CutId
    gate: str
    state: dict[str, Tensor]
    learner: LearnerState | Exception | None = None


@dataclass(frozen=True, slots=True)
class Release(Message):
    """The cut is not needed any more."""

    cut: CutId


@dataclass(frozen=True, slots=True)
class Scored(Message):
    """The score of a round, for schedulers that want one. Validator to gates."""

    value: float


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Pull(Message):
    """Read this many batches more. Sentinel to reader; the number is what bounds the reading ahead.

    With an ``epoch`` it counts only while the source is read for that time (from 0): what a round of
    validation pulled too much must not open the source again.
    """

    count: int
    epoch: int | None = None

    def __post_init__(self) -> None:
        """Pulling nothing would wait for ever."""
        if self.count < 1:
            raise ProtocolError(f"a pull asks for at least one batch, got {self.count}")


@dataclass(frozen=True, slots=True)
class Item(Message, kind=Kind.FORWARD):
    """One batch read, inputs and targets (``None`` when predicting). Reader to sentinel.

    ``source``: the state of a source that has one, before this batch was read; of some batches.
    """

    x: Payload
    y: Any
    source: PlainState | None = None


@dataclass(frozen=True, slots=True)
class EpochEnd(Message, kind=Kind.FORWARD):
    """The source has been read through once more; ``last`` when it will not be read again."""

    last: bool


@dataclass(frozen=True, slots=True)
class SourceFailed(Message, kind=Kind.FORWARD):
    """The source of batches raised, or gave something that is no batch."""

    error: Exception


# ── control ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Attach(Message):
    """You are part of the network from now on: begin. Session to sentinel."""


@dataclass(frozen=True, slots=True)
class Detach(Message):
    """Send nothing new and end; batches in flight come back first, unless they are to be dropped.

    ``done``: what was to be done is done, and nobody goes on from there, as after the last epoch.
    """

    drop: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class Due(Message):
    """It is time for a validation round; after the ``last`` one the validator ends."""

    last: bool = False


@dataclass(frozen=True, slots=True)
class Tick(Message):
    """The time between two rounds is over. A validator to itself."""


@dataclass(frozen=True, slots=True)
class Watch(Message):
    """Tell ``watcher`` that a round is due after every so many updates; 0 ends it. Sentinel to first gate."""

    watcher: str
    every_updates: int


@dataclass(frozen=True, slots=True)
class Probe(Message):
    """Report how you are. ``number`` comes back in the report.

    It is negative where the keeper of a network asks, and not a session.
    """

    number: Signed


@dataclass(frozen=True, slots=True)
class Close(Message):
    """Leave your last words (a gate: its weights) and stop."""


def batch_of(message: object) -> Batch | None:
    """The batch that a message is about, if it is about one."""
    batch = getattr(message, "batch", None)
    return batch if isinstance(batch, Batch) else None


def describe(message: object) -> str:
    """A message in words, for errors: its name and, where it has one, its batch or cut."""
    if isinstance(message, Pull | SourceFailed):
        return "reading"
    if isinstance(message, EpochEnd):
        return "the end of its source"
    name = type(message).__name__
    batch = batch_of(message)
    if batch is not None:
        return f"{name} of batch {batch.number} of {batch.sentinel}"
    cut = getattr(message, "cut", None)
    return f"{name} {cut.number} of {cut.asker}" if isinstance(cut, CutId) else name
