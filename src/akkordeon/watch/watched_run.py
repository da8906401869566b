"""A kept run on the page: what its report says, as it is written or once it is whole."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from akkordeon.core.errors import DataError
from akkordeon.session.page.history import History

__all__ = ["WatchedRun", "report_in"]

READ_MAX = 2**22
"""Bytes of the report that one look reads; the next goes on after them."""

HEAD_MAX = 1024
"""Bytes at its beginning by which it is told from the report of another run that has taken its place."""

DAMAGE = LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError
"""What is raised about a line that nobody of ours has written."""


def report_in(folder: Path, name: str) -> Path:
    """The report of a run, or of one that is at work or was killed.

    Args:
        folder: of the run.
        name: of the file; while it is written ``.part`` comes after it.

    Raises:
        DataError: there is none.
    """
    for path in (folder / f"{name}.part", folder / name):
        if path.is_file():
            return path
    missing = f"has no {name}" if folder.is_dir() else "does not exist"
    raise DataError(f"the folder {folder} {missing}; `akkordeon train --out {folder}` makes what is needed")


class WatchedRun:
    """The report of a run in a folder, of which nobody needs to be at work.

    Seconds are those since the run began, without those while it was interrupted; of a report that has none,
    those that each sentinel was at work.

    Args:
        folder: of the run.
        report: the name of the file.

    Attributes:
        history: its curves, and its log.

    Raises:
        DataError: there is no report in the folder.
    """

    def __init__(self, folder: Path, report: str) -> None:
        self._folder, self._report = folder, report
        report_in(folder, report)
        self.history = History()
        self._begin()

    def _begin(self) -> None:
        self._read = self._lines = 0
        self._head = b""
        self._at_s = self._before_s = 0.0  # of the latest line, and when it was interrupted last
        self._seconds: dict[str, float] = defaultdict(float)  # that each sentinel was at work
        self._told_within: set[str] = set()
        self._sentinels: dict[str, dict[str, Any]] = {}
        self._gates: dict[str, dict[str, Any]] = {}
        self._ended = False
        self._damage: str | None = None  # of the latest line that was left out

    def _begin_anew(self) -> None:
        """Another run has begun in the folder: none of what was read is of it."""
        self._begin()
        self.history.begin_anew()
        self.history.note("noted", "the report", "is another one: a run has begun anew")

    def look(self) -> dict[str, Any]:
        """How the run is, or what it came to; see :class:`akkordeon.session.page.watched.Watched`.

        Raises:
            DataError: its report cannot be read.
        """
        for line in self._new_lines():
            self._lines += 1
            try:
                self._take(json.loads(line))
            except DAMAGE as error:
                self._damage = f"its report is damaged in line {self._lines}: {error!r}"
        return {
            "title": str(self._folder),
            "note": "a kept run: what its report says" if self._ended else "what the report of this run says",
            "failure": self._damage,
            "seconds": max([self._at_s, *self._seconds.values()]),
            "row": list(self._gates),
            "gates": {name: dict(gate) for name, gate in self._gates.items()},
            "sentinels": {name: dict(sentinel) for name, sentinel in self._sentinels.items()},
        }

    def _new_lines(self) -> list[bytes]:
        """The lines that have come since the last look; all of them where another run has begun here."""
        path = report_in(self._folder, self._report)
        try:
            with path.open("rb") as file:
                is_other = file.read(len(self._head)) != self._head
                if is_other or os.fstat(file.fileno()).st_size < self._read:
                    self._begin_anew()
                file.seek(self._read)
                content = file.read(READ_MAX)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        whole = content[: content.rfind(b"\n") + 1]
        self._head = self._head or whole[:HEAD_MAX]
        self._read += len(whole)
        return whole.splitlines()

    def _take(self, line: dict[str, Any]) -> None:
        kind, who = line.get("record"), str(line.get("sentinel", "the run"))
        if kind in ("EpochDone", "TrainingProgress", "RoundDone"):
            self._measured(str(kind), who, line)
        elif kind == "BatchRefused":
            self.history.note(
                "refused", str(line.get("gate")), f"refused a batch of {who}: {line.get('reason')}"
            )
        elif kind == "BatchesRefused":
            for what, count in (line.get("by_gate_and_fault") or {}).items():
                self.history.note("refused", str(what), f"{count} batches more")
        elif kind == "GateRestarted":
            self.history.note("recovered", str(line.get("address")), f"{line.get('why')}; it was made anew")
        elif kind == "SentinelRestarted":
            self.history.note("recovered", who, f"{line.get('why')}; it goes on where it was")
        elif kind == "Resumed":
            self._resumed()
            self.history.note("came", "the run", f"goes on from checkpoint {line.get('checkpoint')}")
        elif kind == "Summary":
            self._summary(line)

    def _resumed(self) -> None:
        """It has been taken up again: what it had come to before is not its end."""
        self._ended = False
        self._before_s = self._at_s
        self._gates = {}
        for sentinel in self._sentinels.values():
            sentinel["state"] = "at work"

    def _measured(self, kind: str, who: str, line: dict[str, Any]) -> None:
        if who not in self._sentinels:
            self.history.note("came", who, "came")
        fresh = {
            "role": line.get("role", "train"),
            "trains": kind != "RoundDone",
            "state": "at work",
            "rounds": 0,
        }
        sentinel = self._sentinels.setdefault(who, fresh)
        within = kind == "TrainingProgress"
        if within:
            self._told_within.add(who)
        else:
            sentinel["rounds"] = line.get("epoch", line.get("round"))
        is_point = kind != "EpochDone" or who not in self._told_within
        seconds = self._when(who, line, is_point)
        if is_point:
            values = {"loss": line.get("loss"), **(line.get("scores") or {})}
            for measure, value in values.items():
                if isinstance(value, int | float):
                    self.history.point(who, measure, value, seconds)
        if kind == "EpochDone":
            self._told_within.discard(who)
            sentinel["trained"] = (line.get("batches_so_far") or {}).get("trained")

    def _when(self, who: str, line: dict[str, Any], counts: bool) -> float:
        """When a line came; ``counts``: its seconds are not those of others that were told of before."""
        at_s = line.get("at_s")
        if at_s is not None:
            self._at_s = self._before_s + at_s
            return self._at_s
        self._seconds[who] += (line.get("seconds") or 0.0) if counts else 0.0
        return self._seconds[who]

    def _summary(self, line: dict[str, Any]) -> None:
        """What it all came to: the last line."""
        self._ended = True
        for name, sentinel in (line.get("sentinels") or {}).items():
            plain = self._sentinels.setdefault(name, {"role": sentinel.get("role")})
            plain |= {"state": "ended", "rounds": sentinel.get("rounds"), "samples": sentinel.get("samples")}
        for gate in line.get("gates") or ():
            self._gates[gate["name"]] = {
                "name": gate["name"],
                "version": gate.get("version"),
                "staleness_mean": round(gate.get("staleness_mean") or 0.0, 2),
                "staleness_max": gate.get("staleness_max"),
            }
        self.history.note("went", "the run", "has ended")
