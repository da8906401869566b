"""Reports as lines of text, for people and for files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from akkordeon.core.addresses import is_sentinel
from akkordeon.core.reports import (
    ActorFailed,
    BatchRefused,
    EpochDone,
    GateRestarted,
    RoundDone,
    SentinelRestarted,
    TrainingProgress,
)
from akkordeon.core.streams.reports import DriftAlarm, ShadowTried, StreamReport
from akkordeon.watch.view import View

__all__ = ["LineView", "line_of", "line_of_stream", "scores_in_words"]

WARNINGS_MAX = 5
"""So many refused batches are told one by one; the others are counted."""


def scores_in_words(scores: Mapping[str, float]) -> str:
    """Scores for the middle of a line: two spaces before each name."""
    return "".join(f"  {name} {value:.4f}" for name, value in scores.items())


def line_of(record: EpochDone | RoundDone | TrainingProgress) -> str:
    """An epoch, a part of one, or a round in one line; numbers stand below each other from line to line."""
    if isinstance(record, EpochDone | TrainingProgress):
        what = f"epoch {record.epoch:>4}"
        end = f"τ mean {record.staleness_mean:.1f} max {record.staleness_max}"
        if isinstance(record, TrainingProgress):
            end += f"  last {record.batches:,} batches"
        if record.refused:
            end += f"  refused {record.refused}"
    else:
        what = f"round {record.round:>4}"
        end = f"version {record.version}" + ("  best so far" if record.best else "")
    scores = scores_in_words(record.scores)
    speed = f"{record.seconds:6.2f} s {record.samples_per_s:>9,.0f} samples/s"
    return f"{record.sentinel:<10} {what}  loss {record.loss:.4f}{scores}  {speed}  {end}"


def line_of_stream(record: StreamReport) -> str:
    """How well a stream was predicted, over the window and over all, in one line."""
    window = scores_in_words(record.window)
    overall = scores_in_words(record.overall)
    line = f"{record.sentinel:<10} {record.examples:>9,} predicted, of late{window},  over all{overall}"
    count = record.labels
    told = {"waiting": count.waiting, "dropped": count.dropped, "unmatched": count.unmatched}
    return line + "".join(f"  {what} {number:,}" for what, number in told.items() if number)


class LineView(View):
    """Tells records as plain lines.

    Args:
        write: takes one line.
        warn: takes one warning; ``write`` if not given.
    """

    def __init__(self, write: Callable[[str], None], warn: Callable[[str], None] | None = None) -> None:
        self._write = write
        self._warn = warn or write
        self._refused = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._refused > WARNINGS_MAX:
            self._warn(f"warning: {self._refused} batches were refused in all")

    def tell(self, record: Any) -> None:
        """Write the line of a record that has one."""
        if isinstance(record, EpochDone | RoundDone | TrainingProgress):
            self._write(line_of(record))
        elif isinstance(record, StreamReport) and record.examples:
            self._write(line_of_stream(record))
        elif isinstance(record, ShadowTried):
            self._write(str(record))
        elif isinstance(record, BatchRefused):
            self._refused += 1
            if self._refused <= WARNINGS_MAX:
                self._warn(f"warning: {record}")
            if self._refused == WARNINGS_MAX:
                self._warn("warning: further refused batches are only counted")
        elif isinstance(record, GateRestarted | DriftAlarm):
            self._warn(f"warning: {record}")
        elif isinstance(record, SentinelRestarted):
            self._warn(f"warning: {record.sentinel} {record.why}; it goes on where it was")
        elif isinstance(record, ActorFailed) and is_sentinel(record.address):
            self._warn(f"warning: {record.address} has failed; why is told when the others have ended")

    def note(self, sentence: str) -> None:
        """Write something that is no record."""
        self._warn(sentence)
