"""What a run has left in its folder, read for a report."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from akkordeon.core.errors import DataError
from akkordeon.core.reports import BatchCount, EpochDone, RoundDone, TrainingProgress
from akkordeon.engines.timeline import Span
from akkordeon.engines.timeline.span import WORK
from akkordeon.experiments.run_folder import REPORT, TASK, load_description
from akkordeon.watch.sinks.points import Point, Points
from akkordeon.watch.sinks.sink import flat
from akkordeon.watch.watched_run import report_in

__all__ = ["KeptRun", "load_runs"]

RECORDS: Mapping[str, type[EpochDone | RoundDone | TrainingProgress]] = {
    kind.__name__: kind for kind in (EpochDone, RoundDone, TrainingProgress)
}

KINDS = (*WORK, "crash", "freeze")


@dataclass
class KeptRun:
    """A run.

    Attributes:
        name: of its folder, or more of its path where two have one.
        settings: by name, as it was told them; empty where it kept no weights.
        environment: what it ran on, when it began last.
        points: what was reported, each with seconds since the run began; they do not count while it is
            interrupted, and are NaN where the report does not say.
        resumed: how often it was taken up again.
        refused: batches, by gate and fault.
        spans: what its actors did last, in seconds from the first of them.
        summary: what it came to; None where it was killed, or is at work.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    points: list[tuple[float, Point]] = field(default_factory=list)
    resumed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    spans: list[Span] = field(default_factory=list)
    summary: Mapping[str, Any] | None = None

    def curve(self, kind: str, of: str, name: str) -> list[tuple[int, float, float]]:
        """(batches trained, seconds, value) of the loss, or of a score, over a run."""
        found = []
        for at_s, point in self.points:
            if (point.kind, point.of) == (kind, of):
                value = point.numbers["loss"] if name == "loss" else point.scores.get(name)
                if value is not None:
                    found.append((point.step, at_s, value))
        return found

    def told(self) -> list[tuple[str, str]]:
        """(kind, sentinel) of those that reported epochs or rounds, in their order."""
        kinds = ("epoch", "round")
        return list(dict.fromkeys((p.kind, p.of) for _, p in self.points if p.kind in kinds))

    def scores(self) -> list[str]:
        """The names of all scores."""
        return list(dict.fromkeys(name for _, point in self.points for name in point.scores))


def load_runs(folders: Sequence[Path]) -> list[KeptRun]:
    """The runs in some folders.

    Raises:
        DataError: there is none in one of them, or it is damaged.
    """
    names = [folder.resolve().name for folder in folders]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        runs.append(_load_run(folder, name if names.count(name) == 1 else str(folder)))
    return runs


def _load_run(folder: Path, name: str) -> KeptRun:
    run = KeptRun(name)
    if (folder / TASK).exists():
        run.settings = flat(load_description(folder))
    path = report_in(folder, REPORT)
    reader = _Reader(run)
    for number, content in _lines(path):
        try:
            reader.take(content)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"{path} is damaged in line {number}: {error!r}") from error
    return run


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines with their numbers, but for a last one that is cut short."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    whole, _, _ = text.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise TypeError("it is no object")
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged in line {number}: {error}") from error
        yield number, content


class _Reader:
    """Takes the lines of a report in, in their order."""

    def __init__(self, run: KeptRun) -> None:
        self._run = run
        self._points = Points()
        self._epochs: dict[str, int] = {}  # that each sentinel has done
        self._before_s = 0.0  # what the run took until it was interrupted last
        self._at_s = 0.0

    def take(self, content: dict[str, Any]) -> None:
        run, kind = self._run, content.pop("record")
        if kind in RECORDS:
            self._report(RECORDS[kind], content)
        elif kind == "Resumed":
            run.resumed += 1
            run.summary, run.spans = None, []  # they were of what it had come to before
            self._before_s = self._at_s
            self._epochs.clear()  # some come once more
        elif kind == "Environment":
            run.environment = content
        elif kind == "BatchRefused":
            run.refused[f"{content['gate']} {content['fault']}"] += 1
        elif kind == "BatchesRefused":
            run.refused.update({str(what): int(n) for what, n in content["by_gate_and_fault"].items()})
        elif kind == "Timeline":
            run.spans = _spans(content)
        elif kind == "Summary":
            run.summary = content

    def _report(self, kind: type[EpochDone | RoundDone | TrainingProgress], content: dict[str, Any]) -> None:
        at_s = _number(content.get("at_s"))
        self._at_s = self._before_s + (0.0 if math.isnan(at_s) else at_s)
        known = {field.name for field in fields(kind)}
        told = {name: value for name, value in content.items() if name in known}
        told["loss"] = _number(told["loss"])
        told["scores"] = {str(name): _number(value) for name, value in told["scores"].items()}
        if kind is not RoundDone:
            self._note_epoch(told["sentinel"], told["epoch"], is_done=kind is EpochDone)
        if "batches_so_far" in told:
            told["batches_so_far"] = BatchCount(**told["batches_so_far"])
        for point in self._points.of(kind(**told)):
            self._run.points.append((math.nan if math.isnan(at_s) else self._at_s, point))

    def _note_epoch(self, sentinel: str, epoch: int, is_done: bool) -> None:
        """Note how far a sentinel is; of an epoch that is done already tells another one of its name."""
        if epoch <= self._epochs.get(sentinel, 0):
            self._points.begin_anew(sentinel)
            self._epochs.pop(sentinel, None)
        if is_done:
            self._epochs[sentinel] = epoch


def _number(value: Any) -> float:
    """JSON has no NaN and no infinity; what was one is null."""
    return math.nan if value is None else float(value)


def _spans(content: Mapping[str, Any]) -> list[Span]:
    """Spans as the report has them, in seconds from the first."""
    actors = [str(who) for who in content["actors"]]
    return [
        Span(
            actors[who],
            what if what in KINDS else "other",
            None if batch is None else int(batch),
            begin_us / 1e6,
            None if length_us is None else (begin_us + length_us) / 1e6,
        )
        for who, what, batch, begin_us, length_us in content["spans"]
    ]
