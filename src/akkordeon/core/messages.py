"""The protocol: every message that travels between actors, and what can travel in it.

A batch goes round like this (S a sentinel, R its reader, 0 1 2 the gates of a row):

    R ──Item──▶ S ──Forward──▶ 0 ──Forward──▶ 1 ──Forward──▶ 2 ──Forward──▶ S     loss
                S ◀──Backward── 0 ◀──Backward── 1 ◀──Backward── 2 ◀──Backward── S     update

A cut goes the way of the backwards, so every gate pins its weights after the same set of batches:

                S ◀────Cut──── 0 ◀────Cut──── 1 ◀────Cut──── 2 ◀────Cut──── S

A replica's gate and the shard of its position (of Downpour), each position on its own:

    gate ──Push──▶ shard        gate ──Fetch──▶ shard ──Parameters──▶ gate
                                gate ──Push──▶ shard ──Dropped──▶ gate ──Refused──▶ S

Where a position has several shards, they are the front and its parts (see split_shard.py):

    part ──Parameters──▶ front, with each cut

Messages are frozen; a tensor in a message is never written to, by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from akkordeon.core.errors import AkkordeonError, ProtocolError
from akkordeon.core.payload import Payload

__all__ = [
    "Attach",
    "Backward",
    "Batch",
    "Close",
    "Cut",
    "CutId",
    "Detach",
    "Dropped",
    "Due",
    "EpochEnd",
    "Evaluate",
    "Export",
    "Exported",
    "Fault",
    "Fetch",
    "Forget",
    "Forward",
    "Item",
    "Kind",
    "Left",
    "Message",
    "Parameters",
    "Probe",
    "Pull",
    "Push",
    "Refused",
    "Release",
    "Scored",
    "Settle",
    "Settled",
    "SourceFailed",
    "Tick",
    "Watch",
    "describe",
    "explain",
]


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
    """The module raised on a payload of a form that it has worked on."""


@dataclass(frozen=True, slots=True)
class Message:
    """What every message is: frozen, and of one :class:`Kind`."""

    kind: ClassVar[Kind] = Kind.CONTROL


# ── training ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Forward(Message):
    """The output of whoever sent it, on its way to the tail of the row and from there to the sentinel."""

    kind: ClassVar[Kind] = Kind.FORWARD
    batch: Batch
    payload: Payload


@dataclass(frozen=True, slots=True)
class Backward(Message):
    """The gradient of the loss by the receiver's output, on its way to the head and then the sentinel.

    ``staleness`` collects τ of every gate it has passed, tail first.
    """

    kind: ClassVar[Kind] = Kind.BACKWARD
    batch: Batch
    payload: Payload | None
    staleness: tuple[int, ...] = ()


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
    """Drop what you hold of this batch, or (``number=None``) of this sentinel, now and when it arrives."""

    sentinel: str
    number: int | None = None


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Cut(Message):
    """Pin the weights and buffers you have now; collects the versions pinned, tail first."""

    kind: ClassVar[Kind] = Kind.BACKWARD
    cut: CutId
    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluate(Message):
    """Work on this in evaluation mode, on the weights pinned for the cut, and pass the output on."""

    kind: ClassVar[Kind] = Kind.EVALUATION
    batch: Batch
    payload: Payload
    cut: CutId


@dataclass(frozen=True, slots=True)
class Export(Message):
    """Send the one who asked for the cut the weights and buffers pinned for it."""

    kind: ClassVar[Kind] = Kind.EVALUATION
    cut: CutId


@dataclass(frozen=True, slots=True)
class Exported(Message):
    """The weights and buffers that a gate pinned for a cut, by their names in the module."""

    cut: CutId
    gate: str
    state: dict[str, Tensor]


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
class Item(Message):
    """One batch read, inputs and targets (``None`` when predicting). Reader to sentinel."""

    kind: ClassVar[Kind] = Kind.FORWARD
    x: Payload
    y: Any


@dataclass(frozen=True, slots=True)
class EpochEnd(Message):
    """The source has been read through once more; ``last`` when it will not be read again."""

    kind: ClassVar[Kind] = Kind.FORWARD
    last: bool


@dataclass(frozen=True, slots=True)
class SourceFailed(Message):
    """The source of batches raised, or gave something that is no batch."""

    kind: ClassVar[Kind] = Kind.FORWARD

    error: Exception


# ── parameter shards ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Fetch(Message):
    """Send me the weights you have. Replica's gate to shard."""

    kind: ClassVar[Kind] = Kind.BACKWARD
    asker: str


@dataclass(frozen=True, slots=True)
class Parameters(Message):
    """A shard's trainable weights, and how many updates it had applied. Shard to replica's gate.

    Where a position is split, also part to front, with every cut: no weights if the front has them.
    ``push_every``: updates between two pushes from now on, where the shard is the one to say so.
    ``buffers``: the shard's, with the first weights that a gate is lent.
    """

    kind: ClassVar[Kind] = Kind.BACKWARD
    shard: str
    version: int
    payload: tuple[Tensor, ...]
    push_every: int | None = None
    buffers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Push(Message):
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

    kind: ClassVar[Kind] = Kind.BACKWARD
    asker: str
    version: int
    steps: int
    payload: tuple[Tensor | None, ...]
    scales: tuple[float, ...] | None = None
    buffers: dict[str, Any] = field(default_factory=dict)
    fetch: bool = False
    batches: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped(Message):
    """A shard did not apply a push, and is as it was before. Shard to replica's gate.

    Args:
        shard: who says so.
        batches: that were in it.
        fault: why.
        reason: why, in words.
        in_a_row: pushes of that gate dropped since one was applied, those too stale not counted.
    """

    kind: ClassVar[Kind] = Kind.BACKWARD
    shard: str
    batches: tuple[Batch, ...]
    fault: Fault
    reason: str
    in_a_row: int


@dataclass(frozen=True, slots=True)
class Left(Message):
    """A replica's gate has ended, and nothing of it is on its way: keep nothing for it. Session to shard."""

    kind: ClassVar[Kind] = Kind.BACKWARD
    by: str


@dataclass(frozen=True, slots=True)
class Settle(Message):
    """Bring all you gathered to where cuts see it, and tell me. Trainer to gate, and that to its shard."""

    kind: ClassVar[Kind] = Kind.BACKWARD
    asker: str


@dataclass(frozen=True, slots=True)
class Settled(Message):
    """All that was sent before :class:`Settle` has been applied."""

    kind: ClassVar[Kind] = Kind.BACKWARD
    by: str


# ── control ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Attach(Message):
    """You are part of the network from now on: begin. Session to sentinel."""


@dataclass(frozen=True, slots=True)
class Detach(Message):
    """Send nothing new and end; batches in flight come home first, unless they are to be dropped."""

    drop: bool = False


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
    """Report how you are. ``number`` comes back in the report."""

    number: int


@dataclass(frozen=True, slots=True)
class Close(Message):
    """Leave your last words (a gate: its weights) and stop."""


def describe(message: object) -> str:
    """A message in words, for errors: its name and, where it has one, its batch or cut."""
    if isinstance(message, Pull | SourceFailed):
        return "reading"
    if isinstance(message, EpochEnd):
        return "the end of its source"
    name = type(message).__name__
    batch = getattr(message, "batch", None)
    if isinstance(batch, Batch):
        return f"{name} of batch {batch.number} of {batch.sentinel}"
    cut = getattr(message, "cut", None)
    return f"{name} {cut.number} of {cut.asker}" if isinstance(cut, CutId) else name


def explain(error: BaseException) -> str:
    """An error in one line: its text if it is ours, with its class before it if it is not."""
    try:
        text = _in_one_line(str(error))
    except Exception as unsaid:  # a user's class may be broken as well
        text = f"its text cannot be had: {type(unsaid).__name__}"
    if isinstance(error, AkkordeonError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _in_one_line(text: str) -> str:
    """The text without line breaks; of an error in a DataLoader's worker only where and what it was.

    PyTorch puts the whole traceback into the text of such an error.
    """
    where, of_worker, trace = text.partition("Original Traceback (most recent call last):")
    if of_worker and trace.strip():
        text = f"{trace.strip().splitlines()[-1].strip()} ({where.strip().rstrip('.')})"
    return " ".join(text.split())
