"""Folders as runs leave them, made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from akkordeon.core.reports import BatchCount, BatchRefused, EpochDone, RoundDone
from akkordeon.engines.timeline import Span
from akkordeon.experiments.journal import Journal
from akkordeon.experiments.report.environment import environment
from akkordeon.experiments.run_folder import TASK, description_text

SPANS = [
    Span("gate/0", "forward", 1, 100.0, 100.25),
    Span("gate/1", "forward", 1, 100.25, 100.5),
    Span("gate/1", "backward", 1, 100.5, 101.0),
    Span("reader/t#1", "other", None, 100.0, 100.01),
]


def epoch(number, loss, name="train", batches=10, **scores):
    count = BatchCount(batches * number, batches * number, 0, 0)
    return EpochDone(name, number, loss, scores, 80, 1.0, 1.5, 3, 0, count)


def round_of(number, loss, name="validate", **scores):
    return RoundDone(name, "validate", number, loss, scores, 40, 0.5, 10 * number)


def gate(name="gate/0", **staleness):
    seen = {"staleness": staleness or {"0": 5, "2": 15}}
    return {"name": name, "version": 20, "staleness_mean": 1.5, "staleness_max": 2, **seen}


def summary(**changes):
    trained = {"role": "train", "rounds": 2, "loss": 0.5, "scores": {"accuracy": 0.75}}
    return {
        "sentinels": {"train": {**trained, "samples": 160, "seconds": 2.0}},
        "gates": [gate("gate/0"), gate("gate/1")],
        "batches": {"sent": 22, "trained": 20, "refused": 1, "lost": 1},
        "restarts": {"gate/0": 2},
        "seconds": 2.5,
        "samples_per_s": 80.0,
    } | changes


def refused():
    return BatchRefused("train", 7, "gate/1", "form", "too wide")


def written(folder: Path, records=None, told=None, settings=None, spans=SPANS) -> Path:
    """A folder with a report and settings; one of a run that did not end, where nothing is told.

    A report comes every half second, the first after half a second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clock = iter(n / 2 for n in range(10**6))
    journal = Journal(folder, now_s=lambda: next(clock))
    journal.tell(environment())
    if records is None:
        records = [record for i in (1, 2) for record in (epoch(i, 1 / i, accuracy=0.5), round_of(i, 2 / i))]
    for record in records:
        journal.tell(record)
    if told is None:
        told = summary()
    if told:
        journal.close(told, spans)
    else:
        journal._file.close()  # as the end of a process does
    description = {"task": "digits", "lr": 0.1, "downpour": None, **(settings or {})}
    (folder / TASK).write_text(description_text(description), encoding="utf-8")
    return folder


def append(folder: Path, *lines: dict) -> None:
    """More lines for a report."""
    with (folder / "report.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
