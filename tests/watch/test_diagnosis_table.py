"""What gates have measured, in a table."""

from __future__ import annotations

from dataclasses import asdict

from akkordeon.core.diagnostics.diagnosis import Diagnosis
from akkordeon.watch.diagnosis_table import diagnosis_lines

FOUND = Diagnosis(10, 48, 0.98125, 0.902, 0.112, 0.345, 1, 4, 300_000, 1_200_000)
NOTHING = Diagnosis(10, 0, None, None, None, None, 1, 1, 0, 0, failed=2, why="ValueError: no")


def gate(name: str, found: Diagnosis | None = None, **staleness: int) -> dict:
    told = {} if found is None else {"diagnosis": asdict(found), "staleness": staleness}
    return {"name": name, "version": 480, "staleness_mean": 2.04, "staleness_max": 3, **told}


def test_each_gate_that_measures_has_a_row_and_how_often_it_saw_each_tau():
    gates = [gate("head", FOUND, **{"0": 10, "2": 4700}), gate("plain"), gate("gate/2", NOTHING)]
    assert diagnosis_lines(gates) == [
        "gate    τ mean  τ max  measured  cosine    min  correction    max  copies   MB",
        "head       2.0      3        48   0.981  0.902       0.112  0.345       4  1.2",
        "gate/2     2.0      3         0       -      -           -      -       1  0.0",
        "head  τ 0: 10, 2: 4,700",
        "gate/2  τ none",
        "gate/2  2 batches could not be measured: ValueError: no",
    ]


def test_where_no_gate_measures_there_is_no_table():
    assert diagnosis_lines([gate("one"), gate("two")]) == []
