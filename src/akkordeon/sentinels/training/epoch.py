"""The sums of an epoch of training, and of the windows in it that progress is reported of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from akkordeon.core.payload import Payload
from akkordeon.core.reports import BatchCount, EpochDone, TrainingProgress
from akkordeon.sentinels.scores import Score, ScoreBoard

__all__ = ["Epoch", "Flight", "Tally"]


@dataclass
class Tally:
    """A running mean and maximum of whole numbers."""

    count: int = 0
    total: int = 0
    largest: int = 0

    def add(self, number: int) -> None:
        """Take one number in."""
        self.count += 1
        self.total += number
        if number > self.largest:
            self.largest = number

    def include(self, other: Tally) -> None:
        """Take all numbers of another one in."""
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    @property
    def mean(self) -> float:
        """Mean of the numbers; 0 before the first."""
        return self.total / self.count if self.count else 0.0


@dataclass
class _Window:
    """The sums of the batches of an epoch since the last report."""

    staleness: Tally = field(default_factory=Tally)
    batches: int = 0
    samples: int = 0
    refused: int = 0


class Epoch:
    """One epoch; it is over when nothing of it is left to send or under way.

    Args:
        number: from 1.
        scores: by name.
        endless: scores keep no batch beyond a report of progress.

    Attributes:
        board: loss and scores.
        under_way: batches that are neither back nor refused.
        all_sent: nothing of it is left to send.
    """

    def __init__(self, number: int, scores: Mapping[str, Score], endless: bool) -> None:
        self.number = number
        self.board = ScoreBoard(scores, endless, finite_only=True)
        self.under_way = 0
        self.all_sent = False
        self._window = _Window()
        self._staleness = Tally()  # these three without the window
        self._samples = 0
        self._refused = 0

    @property
    def is_over(self) -> bool:
        """Whether every batch of it has been sent, and is back or refused."""
        return self.all_sent and not self.under_way

    @property
    def is_empty(self) -> bool:
        """Whether no batch of it was trained or refused."""
        return not (self.samples or self._refused or self._window.refused)

    @property
    def samples(self) -> int:
        """Trained so far."""
        return self._samples + self._window.samples

    def is_progress_due(self, every: int | float | None, seconds: float) -> bool:
        """Whether so many batches (an int), or seconds, have passed since the last report."""
        if every is None:
            return False
        return (self._window.batches if isinstance(every, int) else seconds) >= every

    def count_trained(self, samples: int, staleness: Iterable[int]) -> None:
        """A batch is back, with τ of every gate."""
        self.under_way -= 1
        self._window.batches += 1
        self._window.samples += samples
        for tau in staleness:
            self._window.staleness.add(tau)

    def count_known(self, samples: int) -> None:
        """A batch was trained by another sentinel, in whose place this one goes on."""
        self._samples += samples

    def count_refused(self) -> None:
        """A batch will not come back."""
        self.under_way -= 1
        self._window.refused += 1

    def count_lost(self) -> None:
        """A batch is lost, and nobody knows which gates have learned from it."""
        self.under_way -= 1

    def progress(self, sentinel: str, seconds: float) -> TrainingProgress:
        """The report of the window; another begins."""
        window = self._close_window()
        loss, scores = self.board.window()
        return TrainingProgress(
            sentinel=sentinel,
            epoch=self.number,
            loss=loss,
            scores=scores,
            batches=window.batches,
            samples=window.samples,
            seconds=seconds,
            staleness_mean=window.staleness.mean,
            staleness_max=window.staleness.largest,
            refused=window.refused,
        )

    def done(self, sentinel: str, seconds: float, batches_so_far: BatchCount) -> EpochDone:
        """The report of all of it."""
        self._close_window()
        return EpochDone(
            sentinel=sentinel,
            epoch=self.number,
            loss=self.board.loss,
            scores=self.board.scores(),
            samples=self._samples,
            seconds=seconds,
            staleness_mean=self._staleness.mean,
            staleness_max=self._staleness.largest,
            refused=self._refused,
            batches_so_far=replace(batches_so_far),
        )

    def sums(self) -> dict[str, Any]:
        """Where its sums stand, for another that is to go on with it; without torchmetrics metrics."""
        window = self._window
        return {
            "number": self.number,
            "samples": self.samples,
            "refused": self._refused + window.refused,
            "staleness": [[t.count, t.total, t.largest] for t in (self._staleness, window.staleness)],
            "board": self.board.sums(),
        }

    def go_on_from(self, sums: Mapping[str, Any]) -> None:
        """Take up the sums of another one; if it is of another number, of none."""
        if sums["number"] == self.number:
            self._samples, self._refused = sums["samples"], sums["refused"]
            for count, total, largest in sums["staleness"]:
                self._staleness.include(Tally(count, total, largest))
            self.board.go_on_from(sums["board"])

    def _close_window(self) -> _Window:
        """Count the window in, and begin another."""
        closed, self._window = self._window, _Window()
        self._staleness.include(closed.staleness)
        self._samples += closed.samples
        self._refused += closed.refused
        return closed


@dataclass(slots=True)
class Flight:
    """What a sentinel that trains keeps of a batch in flight."""

    y: Any
    samples: int
    epoch: Epoch
    x: Payload | None  # None once it has turned, and is on its way back

    @property
    def turned(self) -> bool:
        """Whether it was given its loss."""
        return self.x is None
