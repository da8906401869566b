"""What `akkordeon train` keeps, and the commands that use it again: test, predict, replay."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from tests.support.commands import MINE, QUICK, akkordeon, outcome_of

from akkordeon.experiments.run_folder import BEST, REPORT, TASK, WEIGHTS
from akkordeon.session.records.file_format import FORMAT


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A run of digits, kept."""
    folder = tmp_path_factory.mktemp("kept") / "digits"
    told = akkordeon("train", "--epochs", "4", "--keep-best", "accuracy", "--out", folder).stdout
    assert re.search(r"^best: round [1-4], accuracy 0\.\d{4}$", told, re.MULTILINE)
    return folder


def test_a_kept_run_has_weights_report_and_task(kept):
    assert {path.name for path in kept.iterdir()} == {WEIGHTS, BEST, REPORT, TASK}
    names = safetensors.torch.load_file(kept / WEIGHTS).keys()
    assert {"0.0.weight", "0.0.bias", "2.weight"} <= names
    records = [json.loads(line) for line in (kept / REPORT).read_text().splitlines()]
    kinds = [record["record"] for record in records]
    assert kinds.count("EpochDone") == 4
    assert 1 <= kinds.count("RoundDone") <= 4  # what fell due during a round made one more
    assert kinds[-1] == "Summary"
    assert json.loads((kept / TASK).read_text())["task"] == "digits"


def test_what_was_kept_scores_what_the_last_validation_said(kept):
    summary = json.loads((kept / REPORT).read_text().splitlines()[-1])
    last = summary["sentinels"]["validate"]
    found = outcome_of(akkordeon("test", kept, "--json"))
    assert found["scores"] == pytest.approx(last["scores"])
    assert found["loss"] == pytest.approx(last["loss"])
    assert found["samples"] == 360
    assert f"accuracy {found['scores']['accuracy']:.4f}  360 samples" in akkordeon("test", kept).stdout


def test_the_best_weights_are_kept_too(kept):
    records = [json.loads(line) for line in (kept / REPORT).read_text().splitlines()]
    best = max(r["scores"]["accuracy"] for r in records if r["record"] == "RoundDone")
    found = outcome_of(akkordeon("test", kept, "--best", "--json"))
    assert found["scores"]["accuracy"] == pytest.approx(best)


def test_where_weights_are_averaged_the_average_is_validated_and_kept(tmp_path):
    summary = outcome_of(
        akkordeon("train", *QUICK, "--ema", "0.5", "--workers", 1, "--out", tmp_path, "--json")
    )
    weights = outcome_of(akkordeon("train", *QUICK, "--workers", 1, "--json"))["sentinels"]["validate"]
    found = outcome_of(akkordeon("test", tmp_path, "--json"))
    assert found["loss"] == pytest.approx(summary["sentinels"]["validate"]["loss"])
    assert found["loss"] != pytest.approx(weights["loss"])


def test_best_weights_of_an_earlier_run_do_not_stay(tmp_path):
    first = akkordeon("train", *QUICK, "--keep-best", "loss", "--out", tmp_path)
    assert "replaced" not in first.stderr
    assert (tmp_path / BEST).exists()
    second = akkordeon("train", *QUICK, "--out", tmp_path)
    assert second.stderr.splitlines().count(f"replaced the run kept in {tmp_path}") == 1
    assert "replaced" not in second.stdout
    refused = akkordeon("test", tmp_path, "--best", expecting=1).stderr
    assert f"best.safetensors is not there; `akkordeon train --keep-best SCORE --out {tmp_path}`" in refused


def test_classes_are_predicted_and_outputs_written(kept, tmp_path):
    from akkordeon.data.datasets import digits

    x, y = digits().test
    np.save(tmp_path / "x.npy", x[:50].double().numpy())
    classes = [int(line) for line in akkordeon("predict", kept, tmp_path / "x.npy").stdout.split()]
    assert sum(a == b for a, b in zip(classes, y.tolist(), strict=False)) > 40
    akkordeon("predict", kept, tmp_path / "x.npy", "--out", tmp_path / "y.npy", "--best")
    assert np.load(tmp_path / "y.npy").shape == (50, 10)


def test_numbers_are_predicted_where_the_labels_are_numbers(mine, tmp_path):
    akkordeon("train", f"{mine}:regression", "--out", tmp_path / "out")
    np.save(tmp_path / "x.npy", np.zeros((3, 6)))
    predict = ["predict", tmp_path / "out", tmp_path / "x.npy", "--trust"]
    lines = akkordeon(*predict).stdout.splitlines()
    assert [len(line.split()) for line in lines] == [2, 2, 2]
    refused = akkordeon(*predict, "--probabilities", expecting=1)
    assert "its outputs have no probabilities" in refused.stderr


def test_probabilities_are_predicted_for_those_who_ask(kept, tmp_path):
    from akkordeon.data.datasets import digits

    np.save(tmp_path / "x.npy", digits().test[0][:5].numpy())
    predict = ["predict", kept, tmp_path / "x.npy"]
    rows = [
        [float(n) for n in line.split()]
        for line in akkordeon(*predict, "--probabilities").stdout.splitlines()
    ]
    assert [sum(row) for row in rows] == pytest.approx([1.0] * 5, abs=1e-4)
    classes = [int(line) for line in akkordeon(*predict).stdout.split()]
    assert [row.index(max(row)) for row in rows] == classes


def test_inputs_that_do_not_fit_are_told_with_those_that_would(kept, tmp_path, mine):
    np.save(tmp_path / "x.npy", np.zeros((3, 63)))
    result = akkordeon("predict", kept, tmp_path / "x.npy", expecting=1)
    assert "which holds float32 (3, 63); the task's own inputs are float32 (N, 64)" in result.stderr
    akkordeon("train", f"{mine}:several", "--out", tmp_path / "out")
    result = akkordeon("predict", tmp_path / "out", tmp_path / "x.npy", "--trust", expecting=1)
    assert "the task's inputs are several tensors" in result.stderr


def test_inputs_that_lead_to_no_numbers_are_refused_with_their_rows(kept, tmp_path):
    """The class of a row of NaNs was 0, and that of every other row looked as sure."""
    inputs = np.zeros((30, 64), dtype=np.float32)
    inputs[[3, 7]] = np.nan
    np.save(tmp_path / "x.npy", inputs)
    result = akkordeon("predict", kept, tmp_path / "x.npy", expecting=1)
    assert result.stdout == ""
    assert f"no finite outputs for 2 of the 30 rows of {tmp_path / 'x.npy'}: 3, 7" in result.stderr
    inputs[:] = np.inf
    np.save(tmp_path / "x.npy", inputs)
    result = akkordeon("predict", kept, tmp_path / "x.npy", "--out", tmp_path / "y.npy", expecting=1)
    assert "for 30 of the 30 rows of " in result.stderr
    assert result.stderr.strip().endswith(": 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …")
    assert not (tmp_path / "y.npy").exists()


def test_a_folder_without_a_kept_run_is_told(tmp_path):
    assert "does not exist" in akkordeon("test", tmp_path / "absent", expecting=1).stderr
    assert "has no task.json" in akkordeon("predict", tmp_path, "x.npy", expecting=1).stderr


def test_a_task_from_a_file_is_found_again_from_anywhere(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(mine.parent)
    akkordeon("train", "mine.py:task", "--out", "out")
    monkeypatch.chdir("/")
    akkordeon("test", mine.parent / "out", "--trust")
    mine.unlink()
    assert "there is no file" in akkordeon("test", mine.parent / "out", "--trust", expecting=1).stderr


def test_a_python_file_that_a_folder_or_a_record_names_is_not_run_unless_it_is_trusted(mine, tmp_path):
    out, record = tmp_path / "out", tmp_path / "run.gz"
    akkordeon("train", f"{mine}:task", "--out", out, "--record", record)
    mine.write_text(f"{MINE}\nprint('this file is run')")
    np.save(tmp_path / "x.npy", np.zeros((3, 6)))
    for command in (["test", out], ["predict", out, tmp_path / "x.npy"], ["replay", record]):
        refused = akkordeon(*command, expecting=1)
        assert f"the Python file {mine} makes, in its function task" in refused.stderr
        assert "give --trust" in refused.stderr
        assert "this file is run" not in refused.output
        assert "this file is run" in akkordeon(*command, "--trust").output


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"task": "digits", "new_option": 1}, "has a setting 'new_option' that this version does not know"),
        ({"task": "digits", "seed": "7"}, "the setting 'seed' cannot be '7'"),
        ({"task": "digits", "workers": True}, "the setting 'workers' cannot be True"),
        (
            {"task": "digits", "downpour": {"replicas": 2, "x": 1}},
            "has a setting 'x' that this version does not know",
        ),
        ({"task": "digits", "seed": 10**30}, "the record cannot be replayed"),
    ],
)
def test_a_record_of_what_this_version_does_not_know_is_told(task, sentence, tmp_path):
    with gzip.open(tmp_path / "run.gz", "wt") as file:
        file.write(json.dumps({"format": FORMAT, "seed": 0, "task": task}) + "\n")
    assert sentence in akkordeon("replay", tmp_path / "run.gz", expecting=1).stderr


IN_BFLOAT16 = """
def in_bfloat16():
    made, (x, y) = network(), examples()
    for gate in made.gates:
        gate.module.bfloat16()
    return task(network=made, train=(x.bfloat16(), y), validate=(x.bfloat16(), y))
"""


# The digest of the weights was taken from NumPy arrays, and NumPy knows no bfloat16: all had been replayed,
# and then the command ended with "Got unsupported ScalarType BFloat16".
def test_weights_that_numpy_does_not_know_are_replayed(mine, tmp_path):
    mine.write_text(MINE + IN_BFLOAT16)
    akkordeon("train", f"{mine}:in_bfloat16", "--record", tmp_path / "run.gz")
    told = akkordeon("replay", tmp_path / "run.gz", "--trust", "--json")
    assert len(outcome_of(told)["weights_sha256"]) == 64
