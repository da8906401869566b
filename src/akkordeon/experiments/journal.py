"""The report of a run as a file of JSON lines."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from akkordeon.core.errors import DataError
from akkordeon.core.reports import (
    BatchRefused,
    EpochDone,
    GateRestarted,
    RoundDone,
    SentinelRestarted,
    TrainingProgress,
)
from akkordeon.engines.timeline import Span
from akkordeon.experiments.report.environment import Environment
from akkordeon.experiments.run_folder import REPORT, as_json
from akkordeon.session.recovery.durable import to_disk
from akkordeon.watch.view import View

__all__ = ["Journal"]

REFUSALS_MAX = 100
"""So many refused batches have a line of their own; the others are counted."""

REPORTS_MAX = 10_000
"""So many epochs and rounds have a line of their own; then each sentinel has one a second at most."""

SPARSE_S = 1.0


class Journal(View):
    """A view that writes records as they come into ``report.jsonl.part``; closed, it is ``report.jsonl``.

    Its size is bounded by the time the run takes, whatever the length of an epoch.

    Args:
        folder: where the file goes.
        goes_on: the lines of a report that is there stay, as the run was taken up again.
        now_s: the clock.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(
        self, folder: Path, goes_on: bool = False, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = folder / REPORT
        self._part = folder / f"{REPORT}.part"
        self._now_s, self._began_s = now_s, now_s()
        self._says_nothing = not goes_on
        self._refusals = 0
        self._counted: Counter[str] = Counter()  # refused batches that have no line
        self._reports = 0
        self._written_s: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()
        with self._told():
            if goes_on:
                self._take_up()
            mode = "a+" if goes_on else "w+"
            self._file = self._part.open(mode, encoding="utf-8", buffering=1)  # a line is there at once

    def _take_up(self) -> None:
        """Go on with the lines that are there; the last one of a run that was killed may be cut short."""
        if not self._part.exists() and self._path.exists():
            shutil.copyfile(self._path, self._part)
        if self._part.exists():
            os.truncate(self._part, self._part.read_bytes().rfind(b"\n") + 1)

    def resumed(self, checkpoint: int) -> None:
        """Write that the run goes on, and from which checkpoint; what came after that happens once more.

        Raises:
            DataError: the file cannot be written.
        """
        self._write("Resumed", {"checkpoint": checkpoint})

    def tell(self, record: Any) -> None:
        """Write a record of an epoch, a part of one, a round or a refused batch, or what the run is on."""
        if isinstance(record, EpochDone | RoundDone | TrainingProgress):
            self._report(record)
        elif isinstance(record, GateRestarted | SentinelRestarted | Environment):
            self._write(type(record).__name__, asdict(record))
        elif isinstance(record, BatchRefused):
            self._refusals += 1
            if self._refusals <= REFUSALS_MAX:
                self._write("BatchRefused", asdict(record))
            else:
                self._counted[f"{record.gate} {record.fault}"] += 1

    def close(self, outcome: Mapping[str, Any], spans: Sequence[Span] = ()) -> None:
        """Write the summary as the last line, and give the file its name.

        Args:
            outcome: the summary.
            spans: what actors did last, which has a line before it.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            self._write_counted()
            if spans:
                self._write("Timeline", _as_rows(spans))
            self._write("Summary", outcome)
            with self._told():
                self._file.flush()
                if not self._part.exists():
                    self._write_again()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._part, self._path)
                to_disk(self._path.parent)
        finally:
            with suppress(OSError):  # it has been said what is wrong with it
                self._file.close()

    def leave(self) -> None:
        """Have it as it is, where the run ends before it has begun, or breaks off; closed, it stays.

        One that says nothing is removed: it would stand before the report of an earlier run, which is there.
        """
        if self._file.closed:
            return
        with suppress(OSError):
            self._file.close()
        if self._says_nothing:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _write_again(self) -> None:
        """Write all lines once more where somebody has deleted the file, which still can be read here."""
        self._file.seek(0)
        lines = self._file.read()
        self._file.close()
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("w", encoding="utf-8")
        self._file.write(lines)
        self._file.flush()

    def _report(self, record: EpochDone | RoundDone | TrainingProgress) -> None:
        self._reports += 1
        who, now_s = record.sentinel, self._now_s()
        if self._reports > REPORTS_MAX and now_s - self._written_s.get(who, float("-inf")) < SPARSE_S:
            self._left_out[who] += 1
            return
        self._written_s[who] = now_s
        self._write_counted()
        at_s = round(now_s - self._began_s, 3)
        content = {**asdict(record), "samples_per_s": record.samples_per_s, "at_s": at_s}
        if self._left_out[who]:
            content["left_out"] = self._left_out.pop(who)  # of its records, since its last line
        self._write(type(record).__name__, content)

    def _write_counted(self) -> None:
        if self._counted:
            self._write("BatchesRefused", {"by_gate_and_fault": dict(self._counted)})
            self._counted.clear()

    def _write(self, kind: str, content: Mapping[str, Any]) -> None:
        self._says_nothing &= kind == Environment.__name__
        with self._told():
            self._file.write(as_json({"record": kind, **content}) + "\n")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self._path} cannot be written: {error.strerror or error}") from error


def _as_rows(spans: Sequence[Span]) -> dict[str, Any]:
    """Spans in few bytes: actors by number, times in microseconds from the first of all; None is for ever."""
    actors = {who: number for number, who in enumerate(dict.fromkeys(span.who for span in spans))}
    first_s = min(span.begin_s for span in spans)

    def row(span: Span) -> list[Any]:
        length_us = None if span.end_s is None else round(1e6 * (span.end_s - span.begin_s))
        return [actors[span.who], span.what, span.batch, round(1e6 * (span.begin_s - first_s)), length_us]

    return {"actors": list(actors), "spans": [row(span) for span in spans]}
