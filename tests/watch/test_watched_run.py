"""The report of a run in a folder, as the page shows it."""

from __future__ import annotations

import json

import pytest

from akkordeon.core.errors import DataError
from akkordeon.watch.watched_run import WatchedRun

REPORT = "report.jsonl"


def epoch(number, loss, seconds=2.0):
    of = {"sentinel": "train", "epoch": number, "loss": loss, "scores": {"accuracy": 0.5}, "seconds": seconds}
    return {"record": "EpochDone", **of, "batches_so_far": {"trained": 4 * number}}


def written(path, *lines, mode="w"):
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def log_of(run):
    return [(entry["kind"], entry["who"], entry["text"]) for entry in run.history.since(0).log]


def test_of_a_report_without_times_curves_are_over_the_seconds_at_work_and_grow_while_it_is_written(tmp_path):
    part = tmp_path / f"{REPORT}.part"
    written(part, epoch(1, 0.5))
    run = WatchedRun(tmp_path, REPORT)
    first = {"role": "train", "trains": True, "state": "at work", "rounds": 1, "trained": 4}
    assert run.look()["sentinels"]["train"] == first
    written(part, epoch(2, 0.25), mode="a")
    with part.open("a") as file:
        file.write('{"record": "Epoch')  # a line that is being written
    assert run.look()["sentinels"]["train"]["rounds"] == 2
    assert run.history.since(0).curves["train"] == {
        "loss": [[2.0, 0.5], [4.0, 0.25]],
        "accuracy": [[2.0, 0.5], [4.0, 0.5]],
    }


def test_curves_are_over_the_seconds_since_the_run_began_also_where_it_was_interrupted(tmp_path):
    best = {"record": "RoundDone", "sentinel": "validate", "round": 1, "loss": 0.75, "seconds": 0.125}
    again = {"record": "Resumed", "checkpoint": 1}
    lines = {**epoch(1, 0.5), "at_s": 3.0}, {**best, "at_s": 3.5}, again, {**epoch(2, 0.25), "at_s": 2.0}
    written(tmp_path / REPORT, *lines)
    run = WatchedRun(tmp_path, REPORT)
    assert run.look()["seconds"] == 5.5
    curves = run.history.since(0).curves
    assert curves["train"]["loss"] == [[3.0, 0.5], [5.5, 0.25]]
    assert curves["validate"]["loss"] == [[3.5, 0.75]]


def test_its_end_is_its_summary(tmp_path):
    gate = {"name": "gate/0", "version": 8, "staleness_mean": 1.5, "staleness_max": 3}
    sentinels = {"train": {"role": "train", "rounds": 2, "samples": 64}, "validate": {"role": "validate"}}
    summary = {"record": "Summary", "sentinels": sentinels, "gates": [gate]}
    written(tmp_path / f"{REPORT}.part", epoch(1, 0.5))
    run = WatchedRun(tmp_path, REPORT)
    assert "at work" in str(run.look())
    (tmp_path / f"{REPORT}.part").rename(tmp_path / REPORT)
    written(tmp_path / REPORT, summary, mode="a")
    seen = run.look()
    assert seen["gates"] == {"gate/0": gate}
    assert seen["row"] == ["gate/0"]
    assert {name: each["state"] for name, each in seen["sentinels"].items()} == dict.fromkeys(
        sentinels, "ended"
    )
    assert "kept" in seen["note"]
    assert log_of(run)[-1] == ("went", "the run", "has ended")


def test_a_run_that_was_taken_up_again_is_at_work(tmp_path):
    gate = {"name": "gate/0", "version": 8, "staleness_mean": 1.5, "staleness_max": 3}
    summary = {"record": "Summary", "sentinels": {"train": {"role": "train", "rounds": 1}}, "gates": [gate]}
    again = {"record": "Resumed", "checkpoint": 3}
    written(tmp_path / f"{REPORT}.part", epoch(1, 0.5), summary, again, epoch(2, 0.25))
    seen = WatchedRun(tmp_path, REPORT).look()
    assert (seen["sentinels"]["train"]["state"], seen["sentinels"]["train"]["rounds"]) == ("at work", 2)
    assert "kept" not in seen["note"]
    assert seen["gates"] == {}


def test_refusals_and_recoveries_are_in_the_log(tmp_path):
    written(
        tmp_path / REPORT,
        {"record": "Resumed", "checkpoint": 3},
        {"record": "BatchRefused", "sentinel": "train", "gate": "gate/1", "reason": "too stale"},
        {"record": "BatchesRefused", "by_gate_and_fault": {"gate/1 input": 7}},
        {"record": "GateRestarted", "address": "gate/0", "why": "is lost"},
        {"record": "SentinelRestarted", "sentinel": "train", "why": "has failed"},
        {"record": "OfAnotherVersion"},
    )
    run = WatchedRun(tmp_path, REPORT)
    run.look()
    assert [(kind, who) for kind, who, _ in log_of(run)] == [
        ("came", "the run"),
        ("refused", "gate/1"),
        ("refused", "gate/1 input"),
        ("recovered", "gate/0"),
        ("recovered", "train"),
    ]


def test_a_run_that_begins_anew_in_the_folder_is_shown_from_its_beginning(tmp_path):
    written(tmp_path / REPORT, epoch(1, 0.5), epoch(2, 0.25))
    run = WatchedRun(tmp_path, REPORT)
    run.look()
    written(tmp_path / REPORT, epoch(1, 0.75))
    assert run.look()["sentinels"]["train"]["rounds"] == 1


def test_nothing_of_the_run_before_is_shown_with_one_that_takes_its_place(tmp_path):
    written(tmp_path / REPORT, epoch(1, 0.5), epoch(2, 0.25))
    run = WatchedRun(tmp_path, REPORT)
    run.look()
    before = run.history.since(0)
    part = tmp_path / f"{REPORT}.part"
    written(part, *(epoch(number, 0.75) for number in (1, 2, 3)))  # of which more is there than was read
    assert run.look()["sentinels"]["train"]["rounds"] == 3
    now = run.history.since(before.number)
    assert now.is_anew
    assert now.curves["train"]["loss"] == [[2.0, 0.75], [4.0, 0.75], [6.0, 0.75]]
    assert run.history.since(0).curves == now.curves
    assert [text for _, _, text in log_of(run)] == ["is another one: a run has begun anew", "came"]


def test_a_folder_without_a_report_is_told_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist; `akkordeon train --out"):
        WatchedRun(tmp_path / "none", REPORT)
    with pytest.raises(DataError, match=f"has no {REPORT}"):
        WatchedRun(tmp_path, REPORT)


@pytest.mark.parametrize("line", ["{no json", "[1]", '{"record": "EpochDone", "seconds": "long"}'])
def test_of_a_damaged_report_all_else_is_shown_and_that_it_is_damaged(line, tmp_path):
    written(tmp_path / REPORT, epoch(1, 0.5))
    with (tmp_path / REPORT).open("a") as file:
        file.write(f"{line}\n")
    written(tmp_path / REPORT, epoch(2, 0.25), mode="a")
    run = WatchedRun(tmp_path, REPORT)
    for _ in range(2):
        seen = run.look()
        assert "damaged in line 2: " in seen["failure"]
        assert seen["sentinels"]["train"]["rounds"] == 2
