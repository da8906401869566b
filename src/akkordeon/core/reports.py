"""The records in which actors tell about themselves, to whoever watches a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from akkordeon.core.diagnostics.diagnosis import Diagnosis
from akkordeon.core.messages import Batch, Signed
from akkordeon.core.plain_state import PlainState, StageState

__all__ = [
    "ActorFailed",
    "ActorLost",
    "ActorReturned",
    "BatchCount",
    "BatchRefused",
    "BestKept",
    "CheckpointTaken",
    "ClusterLost",
    "EpochDone",
    "GateLeft",
    "GateRestarted",
    "GateStatus",
    "LastKept",
    "MessageRefused",
    "PeerRefused",
    "RoundDone",
    "SentinelEnded",
    "SentinelRestarted",
    "SentinelStatus",
    "ShardStatus",
    "TrainingProgress",
    "Undelivered",
]


@dataclass
class BatchCount:
    """Where the batches of a sentinel went: at any time, sent = trained + refused + lost + in flight."""

    sent: int = 0
    trained: int = 0
    refused: int = 0
    lost: int = 0

    def __add__(self, other: BatchCount) -> BatchCount:
        return BatchCount(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def __sub__(self, other: BatchCount) -> BatchCount:
        return BatchCount(*(a - b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    @property
    def in_flight(self) -> int:
        """Sent, and neither back nor given up; none once the sentinel has ended."""
        return self.sent - self.trained - self.refused - self.lost

    def as_tuple(self) -> tuple[int, int, int, int]:
        """(sent, trained, refused, lost)."""
        return self.sent, self.trained, self.refused, self.lost


class _Timed:
    """A record of so many samples in so many seconds."""

    __slots__ = ()
    samples: int
    seconds: float

    @property
    def samples_per_s(self) -> float:
        """Samples trained or evaluated per second."""
        return self.samples / self.seconds if self.seconds > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class EpochDone(_Timed):
    """A training sentinel has had every batch of an epoch back.

    Attributes:
        refused: batches of this epoch.
        batches_so_far: where all its batches have gone, those of epochs before among them.
    """

    sentinel: str
    epoch: int
    loss: float
    scores: dict[str, float]
    samples: int
    seconds: float
    staleness_mean: float
    staleness_max: int
    refused: int = 0
    batches_so_far: BatchCount = field(default_factory=BatchCount)


@dataclass(frozen=True, slots=True)
class TrainingProgress(_Timed):
    """How a training sentinel does within an epoch: the batches since the last report, or since it began.

    Attributes:
        scores: functions over the same batches; torchmetrics metrics over the epoch so far, or, where the
            source does not say how long it is, over the same batches.
        batches: that were trained.
        samples: in them.
        seconds: since the last report.
    """

    sentinel: str
    epoch: int
    loss: float
    scores: dict[str, float]
    batches: int
    samples: int
    seconds: float
    staleness_mean: float
    staleness_max: int
    refused: int = 0


@dataclass(frozen=True, slots=True)
class RoundDone(_Timed):
    """A validation or test round on one cut is over."""

    sentinel: str
    role: str
    round: int
    loss: float
    scores: dict[str, float]
    samples: int
    seconds: float
    version: int
    best: bool = False
    stop_training: bool = False
    """Whether the rounds without a better one are as many as the patience."""


@dataclass(frozen=True, slots=True)
class BestKept:
    """The weights of the best round so far, by gate address and name in the module."""

    sentinel: str
    round: int
    value: float
    states: dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class LastKept:
    """The weights of the latest round, where that was asked for; as :class:`BestKept`."""

    sentinel: str
    round: int
    states: dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class CheckpointTaken:
    """All that a run can be taken up from, of one consistent cut.

    Attributes:
        sentinel: the checkpointer's name.
        number: of the checkpoint, from 1.
        stages: by address.
        sentinels: what each goes on from, by address.
        random: the state of the process's generator, where all were at rest; None where they were not.
        due: another has fallen due meanwhile, and is begun at once.
    """

    sentinel: str
    number: int
    stages: dict[str, StageState]
    sentinels: dict[str, PlainState]
    random: Tensor | None = None
    due: bool = False


@dataclass(frozen=True, slots=True)
class BatchRefused:
    """A batch was not learned from, or not by every gate."""

    sentinel: str
    number: int
    gate: str
    fault: str
    reason: str

    def __str__(self) -> str:
        own = self.gate == self.sentinel
        which = f"its own batch {self.number}" if own else f"batch {self.number} of {self.sentinel}"
        return f"{self.gate} refused {which}: {self.reason}"


@dataclass(frozen=True, slots=True)
class MessageRefused:
    """An actor did not take a message that is about no batch, or not about one of its own."""

    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """A stage has refused so many messages of one sender in a row that it takes no more of them.

    Attributes:
        by: the stage.
        sender: address of the sentinel.
        reason: why it refused the last one.
        in_a_row: messages it refused.
    """

    by: str
    sender: str
    reason: str
    in_a_row: int


@dataclass(frozen=True, slots=True)
class SentinelEnded:
    """A sentinel has stopped, of itself or because it was detached.

    Attributes:
        address: its own.
        batches: where they went.
        result: what it was asked for.
        cut_short: it did not send all that it was to train.
        state: what another could go on from.
    """

    address: str
    batches: BatchCount
    result: Any = None
    cut_short: bool = False
    state: PlainState | None = None


@dataclass(frozen=True, slots=True)
class SentinelStatus:
    """A sentinel, asked how it is."""

    probe: Signed
    address: str
    name: str
    role: str
    rounds: int
    in_flight: int
    samples: int
    samples_of_epoch: int
    batches: BatchCount


@dataclass(frozen=True, slots=True)
class GateStatus:
    """A gate, asked how it is. ``staleness``: how often each τ was seen; ``diagnosis``: if it measures."""

    probe: Signed
    address: str
    name: str
    index: int
    version: int
    stashed: int
    pinned: int
    staleness: dict[int, int]
    refused: dict[str, int]
    diagnosis: Diagnosis | None = field(default=None, kw_only=True)

    @property
    def staleness_mean(self) -> float:
        """Mean τ over all updates; 0 before the first."""
        updates = sum(self.staleness.values())
        return sum(tau * n for tau, n in self.staleness.items()) / updates if updates else 0.0

    @property
    def staleness_max(self) -> int:
        """Largest τ of any update; 0 before the first."""
        return max(self.staleness, default=0)


@dataclass(frozen=True, slots=True)
class ShardStatus(GateStatus):
    """A parameter shard, asked how it is.

    Attributes:
        pushes: that came, those it did not apply among them.
        fetches: that it answered.
        bytes_in: of what was pushed.
        bytes_out: of what was fetched.
        waiting: fetches held back until the warm start is over.
    """

    pushes: int
    fetches: int
    bytes_in: int
    bytes_out: int
    waiting: int


@dataclass(frozen=True, slots=True)
class GateLeft:
    """The weights and buffers with which a gate ended; ``averaged``: with the average, where it keeps one."""

    address: str
    index: int
    version: int
    state: dict[str, Tensor]
    averaged: dict[str, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class ActorFailed:
    """An actor raised and was stopped.

    Attributes:
        address: whose.
        doing: the message it handled, in words.
        error: what it raised.
        batch: that the message was about, if it was about one.
    """

    address: str
    doing: str
    error: BaseException
    batch: Batch | None = None


@dataclass(frozen=True, slots=True)
class ActorLost:
    """An actor is gone with all it held, and left no last words: its process or its host died.

    ``back_after_s``: when its place is there again, if that is known; None where there is another at once.
    """

    address: str
    why: str
    back_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class ClusterLost:
    """What the actors run on will not carry them much longer; they are there still and can leave weights."""

    why: str


@dataclass(frozen=True, slots=True)
class ActorReturned:
    """An actor that was lost has been made anew and knows nothing of before."""

    address: str


@dataclass(frozen=True, slots=True)
class GateRestarted:
    """A gate or shard was gone and has been made anew.

    Attributes:
        address: whose.
        why: it was gone, in words.
        times: it was made anew so far, this time included.
        version_before: the highest that was known of, exact where it raised; of one that is lost there may
            have been updates that nobody heard of, at most those between two snapshots.
        version_saved: of the snapshot that it goes on from.
        version_after: above all that was known of before.
    """

    address: str
    why: str
    times: int
    version_before: int
    version_saved: int
    version_after: int

    @property
    def updates_lost(self) -> int:
        """The updates that are rolled back, as far as they are known of."""
        return max(0, self.version_before - self.version_saved)

    def __str__(self) -> str:
        plural = "" if self.updates_lost == 1 else "s"
        return f"{self.address} {self.why}; it was made anew, {self.updates_lost} update{plural} back"


@dataclass(frozen=True, slots=True)
class SentinelRestarted:
    """A sentinel was gone, and goes on where it was; ``times``: so far, this time included."""

    sentinel: str
    why: str
    times: int


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A message for an actor that is not, or no longer, there."""

    to: str
    message: Any
