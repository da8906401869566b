"""What a run has left is read as it was reported, also of one that was killed."""

from __future__ import annotations

import json
import math

import pytest
from tests.support.kept import SPANS, append, epoch, refused, round_of, written

from akkordeon.core.errors import DataError
from akkordeon.engines.timeline import Span
from akkordeon.experiments.journal import REFUSALS_MAX
from akkordeon.experiments.report.kept_run import load_runs


def read(folder):
    (run,) = load_runs([folder])
    return run


def test_a_run_has_its_settings_environment_and_summary(tmp_path):
    run = read(written(tmp_path / "one", settings={"downpour": {"replicas": 2}}))
    assert run.name == "one"
    assert run.settings == {"task": "digits", "lr": 0.1, "downpour.replicas": 2}
    assert run.environment["cores"] >= 1
    assert run.environment["torch"]
    assert run.summary["batches"]["trained"] == 20


def test_a_curve_is_by_batches_and_by_seconds(tmp_path):
    run = read(written(tmp_path))
    assert run.told() == [("epoch", "train"), ("round", "validate")]
    assert run.curve("epoch", "train", "loss") == [(10, 0.5, 1.0), (20, 1.5, 0.5)]
    assert run.curve("round", "validate", "loss") == [(10, 1.0, 2.0), (20, 2.0, 1.0)]
    assert run.curve("epoch", "train", "accuracy") == [(10, 0.5, 0.5), (20, 1.5, 0.5)]
    assert run.curve("round", "validate", "accuracy") == []
    assert run.scores() == ["accuracy"]


def test_a_sentinel_that_is_attached_once_more_goes_on_along_the_curve(tmp_path):
    losses = 0.5, 0.4, 0.3, 0.2
    run = read(written(tmp_path, [epoch(1 + i % 2, loss) for i, loss in enumerate(losses)]))
    assert [(step, loss) for step, _, loss in run.curve("epoch", "train", "loss")] == [
        (10, 0.5), (20, 0.4), (30, 0.3), (40, 0.2)
    ]  # fmt: skip


def test_what_was_no_number_is_none(tmp_path):
    run = read(written(tmp_path, [epoch(1, float("nan"), f=float("inf"))]))
    ((_, _, loss),) = run.curve("epoch", "train", "loss")
    ((_, _, score),) = run.curve("epoch", "train", "f")
    assert math.isnan(loss)
    assert math.isnan(score)


def test_what_actors_did_last_begins_at_0(tmp_path):
    run = read(written(tmp_path))
    assert [(s.who, s.what, s.batch) for s in run.spans] == [(s.who, s.what, s.batch) for s in SPANS]
    assert [s.begin_s for s in run.spans] == [0.0, 0.25, 0.5, 0.0]
    assert run.spans[2].end_s == 1.0


def test_a_fault_that_lasts_for_ever_is_read_as_such(tmp_path):
    spans = [*SPANS, Span("gate/1", "crash", None, 100.5, None)]
    assert read(written(tmp_path, spans=spans)).spans[-1] == Span("gate/1", "crash", None, 0.5, None)


def test_refused_batches_are_counted_by_gate_and_fault(tmp_path):
    run = read(written(tmp_path, [refused()] * (REFUSALS_MAX + 30)))
    assert run.refused == {"gate/1 form": REFUSALS_MAX + 30}


def test_a_run_that_was_killed_is_read_as_far_as_it_came(tmp_path):
    folder = written(tmp_path, told={})
    with (folder / "report.jsonl.part").open("a") as file:
        file.write('{"record": "EpochDone", "sent')
    run = read(folder)
    assert run.summary is None
    assert run.curve("epoch", "train", "loss")[-1] == (20, 1.5, 0.5)


def test_seconds_go_on_where_a_run_was_taken_up_again(tmp_path):
    folder = written(tmp_path)
    line = {**json.loads((folder / "report.jsonl").read_text().splitlines()[1]), "at_s": 0.25}
    line["batches_so_far"] = {"sent": 30, "trained": 30, "refused": 0, "lost": 0}
    append(folder, {"record": "Resumed", "checkpoint": 2}, line)
    run = read(folder)
    assert run.resumed == 1
    assert run.curve("epoch", "train", "loss")[-1][:2] == (30, 2.25)


def test_what_a_run_had_come_to_before_it_was_taken_up_again_is_not_its_end(tmp_path):
    folder = written(tmp_path)
    append(folder, {"record": "Resumed", "checkpoint": 2})
    run = read(folder)
    assert (run.summary, run.spans) == (None, [])


def test_a_report_from_before_times_were_kept_has_curves_by_batches(tmp_path):
    folder = written(tmp_path)
    lines = [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("at_s", None)
    (folder / "report.jsonl").unlink()
    append(folder, *lines)
    curve = read(folder).curve("epoch", "train", "loss")
    assert [step for step, _, _ in curve] == [10, 20]
    assert all(math.isnan(at_s) for _, at_s, _ in curve)


def test_two_runs_in_folders_of_one_name_are_told_apart(tmp_path):
    folders = [written(tmp_path / name / "out") for name in ("a", "b")]
    assert [run.name for run in load_runs(folders)] == [str(folder) for folder in folders]


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(DataError, match=r"none does not exist; `akkordeon train --out"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no report.jsonl"):
        read(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        "{}",
        '{"record": "EpochDone"}',
        '{"record": "EpochDone", "sentinel": "t", "loss": "low", "scores": {}}',
        '{"record": "BatchesRefused", "by_gate_and_fault": {"a": "many"}}',
        '{"record": "Timeline", "actors": ["gate/0"], "spans": [[0, "forward"]]}',
        '{"record": "Timeline", "actors": ["gate/0"], "spans": [[1, "forward", 0, 0, 0]]}',
        '{"record": "BatchRefused"}',
    ],
)
def test_a_damaged_report_is_told_with_its_line(line, tmp_path):
    folder = written(tmp_path)
    with (folder / "report.jsonl").open("a") as file:
        file.write(line + "\n")
    count = len((folder / "report.jsonl").read_text().splitlines())
    with pytest.raises(DataError, match=rf"report.jsonl is damaged in line {count}: "):
        read(folder)


def test_lines_and_fields_of_other_versions_are_left_out(tmp_path):
    folder = written(tmp_path, [epoch(1, 0.5), round_of(1, 0.25)])
    text = (folder / "report.jsonl").read_text().replace('"epoch": 1', '"epoch": 1, "moon": "full"')
    (folder / "report.jsonl").write_text(text)
    append(folder, {"record": "Unheard", "of": 1})
    assert read(folder).curve("epoch", "train", "loss") == [(10, 0.5, 0.5)]
