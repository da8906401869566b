"""From the records of a session to numbers with a step: what every sink is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from akkordeon.core.addresses import is_sentinel, sentinel_of
from akkordeon.core.reports import (
    ActorFailed,
    BatchCount,
    BatchRefused,
    EpochDone,
    GateRestarted,
    GateStatus,
    RoundDone,
    SentinelEnded,
    SentinelRestarted,
    ShardStatus,
    TrainingProgress,
)
from akkordeon.core.streams.reports import DriftAlarm, StreamReport

__all__ = ["Point", "Points"]


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one moment.

    Attributes:
        kind: of what: ``"epoch"``, ``"window"`` (a part of one), ``"round"``, ``"batches"``, ``"stream"`` or
            ``"gate"``.
        of: the name of the sentinel, or the address of the gate.
        step: batches trained by all sentinels together when this was reported (of a stream, examples
            predicted): one axis for all.
        numbers: by name.
        scores: by the names that the user gave them.
        staleness: of a gate, how often each τ was seen so far.
    """

    kind: str
    of: str
    step: int
    numbers: Mapping[str, float]
    scores: Mapping[str, float] = field(default_factory=dict)
    staleness: Mapping[int, int] = field(default_factory=dict)

    def tagged(self) -> Iterator[tuple[str, float]]:
        """All numbers and scores, as ``train/loss`` or ``train/window/loss``."""
        prefix = f"{self.of}/window" if self.kind == "window" else self.of
        for name, value in self.numbers.items():
            yield f"{prefix}/{name}", value
        for name, value in self.scores.items():
            yield f"{prefix}/scores/{name}" if name in self.numbers else f"{prefix}/{name}", value

    def histogram(self, bins_max: int = 500) -> tuple[list[int], list[float]]:
        """How often each τ was seen, from the least to the largest; none where none was.

        Returns:
            Counts of τ in bins of one width, which is 1 if they are not too many; and the edges of the bins.
        """
        if not self.staleness:
            return [], []
        least, most = min(self.staleness), max(self.staleness)
        width = -(-(most - least + 1) // bins_max)
        counts = [0] * ((most - least) // width + 1)
        for tau, n in self.staleness.items():
            counts[(tau - least) // width] += n
        return counts, [least - 0.5 + width * i for i in range(len(counts) + 1)]


class Points:
    """Makes points of records, in their order. For one thread.

    Attributes:
        step: of the latest point.
    """

    def __init__(self) -> None:
        self.step = 0
        self._trained: dict[str, int] = {}  # batches, by sentinel
        self._failed: set[str] = set()  # addresses of sentinels that have not ended yet
        self._may_go_on: dict[str, int] = {}  # what those had trained that failed and have ended
        self._returned: set[str] = set()  # sentinels that go on, of whose end was not told yet
        self._refused: dict[str, int] = {}
        self._alarms: dict[str, int] = {}

    def of(self, record: Any) -> Iterator[Point]:
        """The points of a record; of most kinds there are none."""
        make = self._MAKERS.get(type(record))
        if make is not None:
            yield from make(self, record)

    def begin_anew(self, sentinel: str) -> None:
        """Another sentinel of that name has come, which counts from 0; the step goes on."""
        self._trained.pop(sentinel, None)

    def _trains(self, sentinel: str, batches: int) -> None:
        """A sentinel has trained so many batches in all, or more."""
        before = self._trained.get(sentinel, 0)
        self._trained[sentinel] = max(before, batches)
        self.step += self._trained[sentinel] - before

    def _progress(self, record: TrainingProgress) -> Iterator[Point]:
        self._trains(record.sentinel, self._trained.get(record.sentinel, 0) + record.batches)
        yield Point("window", record.sentinel, self.step, _of_training(record), record.scores)

    def _epoch(self, record: EpochDone) -> Iterator[Point]:
        self._trains(record.sentinel, record.batches_so_far.trained)
        yield Point("epoch", record.sentinel, self.step, _of_training(record), record.scores)
        yield from self._batches(record.sentinel, record.batches_so_far)

    def _ended(self, record: SentinelEnded) -> Iterator[Point]:
        name = record.address.partition("/")[2].rpartition("#")[0]
        if record.batches.sent and name in self._trained:
            self._trains(name, record.batches.trained)
            yield from self._batches(name, record.batches)
            if record.address not in self._failed:
                self.begin_anew(name)
            elif name not in self._returned:
                self._may_go_on[name] = self._trained.pop(name)
        if record.address not in self._failed:
            self._refused.pop(name, None)
        self._failed.discard(record.address)
        self._returned.discard(name)

    def _has_failed(self, record: ActorFailed) -> Iterator[Point]:
        if is_sentinel(address := sentinel_of(record.address)):
            self._failed.add(address)
        return iter(())

    def _goes_on(self, record: SentinelRestarted) -> Iterator[Point]:
        """It counts on from what it had trained before; of its end may be told only after this."""
        before = self._may_go_on.pop(record.sentinel, None)
        if before is None:
            self._returned.add(record.sentinel)
        else:
            self._trained[record.sentinel] = before + self._trained.get(record.sentinel, 0)
        return iter(())

    def _batches(self, sentinel: str, count: BatchCount) -> Iterator[Point]:
        numbers = {f"batches_{name}": n for name, n in asdict(count).items()}
        self._refused[sentinel] = count.refused
        yield Point("batches", sentinel, self.step, numbers)

    def _round(self, record: RoundDone) -> Iterator[Point]:
        numbers = {"loss": record.loss, "version": record.version, "seconds": record.seconds}
        yield Point("round", record.sentinel, self.step, numbers, record.scores)

    def _stream(self, record: StreamReport) -> Iterator[Point]:
        self._trains(record.sentinel, record.examples)
        scores = {f"window/{name}": value for name, value in record.window.items()}
        scores |= {f"overall/{name}": value for name, value in record.overall.items()}
        labels = {f"labels_{name}": n for name, n in asdict(record.labels).items()}
        numbers = {"examples": record.examples, "unscored": record.unscored, **labels}
        yield Point("stream", record.sentinel, self.step, numbers, scores)

    def _gate(self, record: GateStatus) -> Iterator[Point]:
        numbers = {
            "version": record.version,
            "stashed": record.stashed,
            "pinned": record.pinned,
            "staleness_mean": record.staleness_mean,
            "staleness_max": record.staleness_max,
            "messages_refused": sum(record.refused.values()),
        }
        if isinstance(record, ShardStatus):
            numbers |= {"pushes": record.pushes, "fetches": record.fetches}
            numbers |= {"bytes_in": record.bytes_in, "bytes_out": record.bytes_out}
        if record.diagnosis is not None:
            found = record.diagnosis
            shares = {"cosine_mean": found.cosine_mean, "correction_mean": found.correction_mean}
            numbers |= {name: value for name, value in shares.items() if value is not None}
        yield Point("gate", record.address, self.step, numbers, {}, dict(sorted(record.staleness.items())))

    def _refused_batch(self, record: BatchRefused) -> Iterator[Point]:
        self._refused[record.sentinel] = self._refused.get(record.sentinel, 0) + 1
        numbers = {"batches_refused": self._refused[record.sentinel]}
        yield Point("batches", record.sentinel, self.step, numbers)

    def _restarted(self, record: GateRestarted) -> Iterator[Point]:
        yield Point("gate", record.address, self.step, {"restarts": record.times})

    def _alarm(self, record: DriftAlarm) -> Iterator[Point]:
        self._alarms[record.sentinel] = self._alarms.get(record.sentinel, 0) + 1
        yield Point("stream", record.sentinel, self.step, {"alarms": self._alarms[record.sentinel]})

    _MAKERS: ClassVar[Mapping[type, Callable[[Points, Any], Iterator[Point]]]] = {
        ActorFailed: _has_failed,
        SentinelRestarted: _goes_on,
        TrainingProgress: _progress,
        EpochDone: _epoch,
        SentinelEnded: _ended,
        RoundDone: _round,
        StreamReport: _stream,
        GateStatus: _gate,
        ShardStatus: _gate,
        BatchRefused: _refused_batch,
        GateRestarted: _restarted,
        DriftAlarm: _alarm,
    }


def _of_training(record: EpochDone | TrainingProgress) -> dict[str, float]:
    per_s = record.samples_per_s
    return {
        "epoch": record.epoch,
        "loss": record.loss,
        "samples_per_s": per_s if math.isfinite(per_s) else 0.0,
        "staleness_mean": record.staleness_mean,
        "staleness_max": record.staleness_max,
    }
