"""The command line: what is trained, kept, measured and predicted."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.data.test_datasets import IDX_FILES, write
from tests.support.harness import WAIT_S
from typer.testing import CliRunner, Result

from akkordeon.cli.main import app
from akkordeon.data import download
from akkordeon.experiments.run_folder import BEST, REPORT, TASK, WEIGHTS
from akkordeon.pipeline.staleness import RULES
from akkordeon.session.records.lines import FORMAT

QUICK = ["--epochs", "2", "--take", "256"]

MINE = """
import itertools
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
import akkordeon as ak

def network(n_out=4, lr=0.1, **options):
    def sgd(params):
        return torch.optim.SGD(params, lr=lr)
    return ak.Network([ak.Gate(nn.Linear(6, 5), sgd), ak.Gate(nn.Linear(5, n_out), sgd)], **options)

def examples(n=64):
    return torch.randn(n, 6), torch.randint(4, (n,))

def task(**changes):
    return ak.Task(**{
        "network": network(), "train": examples(), "validate": examples(), "loss": cross_entropy,
        "scores": {"accuracy": ak.accuracy}, "epochs": 2, "batch_size": 8, **changes})

def regression():
    x = torch.randn(32, 6)
    return task(network=network(2), train=(x, x[:, :2]), validate=(x, x[:, :2]), loss=mse_loss, scores={})

def some_bad():
    batches = [examples(8) for _ in range(20)]
    for x, _ in batches[3::2]:
        x[0] = torch.nan
    return task(train=batches)

def all_bad():
    return task(train=[(torch.randn(8, 7), torch.zeros(8).long()) for _ in range(20)])

def too_hot():
    return task(network=network(lr=float("inf")), validate=(torch.randn(8, 6), torch.full((8,), 1)))

def bad_loss():
    return task(loss=lambda outputs, y: outputs)

class Fragile(nn.Linear):
    calls = 0
    def forward(self, x):
        Fragile.calls += 1
        if Fragile.calls > 3:
            raise RuntimeError("the fuse\\nblew")
        return super().forward(x)

def breaks():
    return task(network=ak.Network([ak.Gate(Fragile(6, 4), lambda params: torch.optim.SGD(params, 0.1))]))

def scheduled():
    def make(params):
        optimizer = torch.optim.SGD(params, lr=0.1)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 100)
    return task(network=ak.Network([ak.Gate(nn.Linear(6, 4), make)]))

def nothing_to_score():
    return task(validate=[(torch.randn(0, 6), torch.randint(4, (0,)))])

def endless():
    return task(train=(examples(8) for _ in itertools.count()), epochs=1)

def several():
    x, y = examples()
    return task(train=((x, x), y), validate=((x, x), y), network=ak.Network([
        ak.Gate(Both(), lambda params: torch.optim.SGD(params, 0.1))]))

class Both(nn.Linear):
    def __init__(self):
        super().__init__(12, 4)
    def forward(self, pair):
        return super().forward(torch.cat(pair, 1))
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def akkordeon(*arguments: object, expecting: int = 0) -> Result:
    """Run the command line here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"AKKORDEON_DATA": None})
    assert result.exit_code == expecting, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def outcome_of(result: Result) -> dict:
    """The JSON object at the end; strictly JSON, so no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(result.stdout.splitlines()[-1], parse_constant=refuse)


# ── train ────────────────────────────────────────────────────────────────────────────────────────────


def test_training_prints_a_line_per_epoch_and_validation_and_what_it_took():
    lines = akkordeon("train", *QUICK).stdout.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("train")] == [
        ["train", "epoch", "1"],
        ["train", "epoch", "2"],
    ]
    for what in ("loss", "accuracy", "samples/s", "τ mean", "max"):
        assert what in lines[0]
    assert any(line.startswith("validate") and "accuracy" in line for line in lines)
    assert lines[-1].startswith("16 batches trained in")


def test_with_json_the_last_line_is_the_outcome():
    outcome = outcome_of(akkordeon("train", "digits", *QUICK, "--json"))
    assert outcome.keys() == {"sentinels", "gates", "batches", "seconds", "samples_per_s"}
    train, validate = outcome["sentinels"]["train"], outcome["sentinels"]["validate"]
    assert train.keys() == validate.keys() == {"role", "rounds", "loss", "scores", "samples", "seconds"}
    assert (train["role"], train["rounds"], train["samples"]) == ("train", 2, 512)
    assert validate["role"] == "validate"
    assert validate["rounds"] in (1, 2)  # what fell due during a round made one more
    assert outcome["batches"] == {"sent": 16, "trained": 16, "refused": 0, "lost": 0}
    assert [gate["version"] for gate in outcome["gates"]] == [16, 16, 16]
    assert all(
        gate.keys() == {"name", "version", "staleness_mean", "staleness_max"} for gate in outcome["gates"]
    )


def test_digits_reach_what_they_should_with_the_defaults():
    outcome = outcome_of(akkordeon("train", "--json"))
    assert outcome["sentinels"]["validate"]["scores"]["accuracy"] >= 0.96
    assert outcome["seconds"] < 60


def test_the_training_data_is_cut_into_parts_with_a_sentinel_each():
    outcome = outcome_of(akkordeon("train", *QUICK, "--sentinels", 3, "--json"))
    samples = {name: sentinel["samples"] for name, sentinel in outcome["sentinels"].items()}
    assert {name: n // 2 for name, n in samples.items() if name != "validate"} == {
        "train-1": 86,
        "train-2": 85,
        "train-3": 85,
    }


def test_many_sentinels_with_many_batches_in_flight_have_room():
    akkordeon("train", *QUICK, "--sentinels", 4, "--in-flight", 100)


@pytest.mark.parametrize("sentinels", [1, 3])
def test_one_worker_and_a_seed_give_the_same_run_again(sentinels, tmp_path):
    def weights(seed: int) -> dict:
        folder = tmp_path / f"of {seed}"
        options = ("--workers", 1, "--seed", seed, "--sentinels", sentinels, "--out", folder)
        akkordeon("train", *QUICK, *options)
        return safetensors.torch.load_file(folder / WEIGHTS)

    one, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["0.0.weight"], other["0.0.weight"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rules_and_optimizers_can_be_chosen(rule, optimizer):
    akkordeon("train", *QUICK, "--staleness", rule, "--optimizer", optimizer, "--lr", 0.001)


def test_a_rate_alone_is_that_of_the_tasks_own_optimizers(tmp_path):
    for lr in (0, 0.001):
        akkordeon("train", *QUICK, "--lr", lr, "--out", tmp_path / f"{lr}")
    at_zero, at_more = (safetensors.torch.load_file(tmp_path / f"{lr}" / WEIGHTS) for lr in (0, 0.001))
    start = torch.manual_seed(0) and torch.nn.Linear(64, 256).weight
    assert torch.equal(at_zero["0.0.weight"], start)
    assert not torch.equal(at_more["0.0.weight"], start)


def test_gradients_older_than_allowed_are_refused_warned_of_and_counted():
    result = akkordeon("train", *QUICK, "--in-flight", 8, "--max-staleness", 0, "--json")
    assert outcome_of(result)["batches"]["refused"] > 0
    assert "warning: gate/" in result.stderr
    assert "updates old, at most 0" in result.stderr


def test_validation_can_go_by_the_clock():
    result = akkordeon("train", "--epochs", 5, "--validate-every", 0.02, "--json")
    assert outcome_of(result)["sentinels"]["validate"]["rounds"] > 1


def test_training_stops_early_when_nothing_gets_better(mine):
    arguments = ["--keep-best", "loss", "--patience", 2, "--lr", 0, "--epochs", 1000, "--json"]
    assert outcome_of(akkordeon("train", f"{mine}:task", *arguments))["sentinels"]["train"]["rounds"] < 1000


def test_image_data_comes_from_the_folder_given_and_an_argument_beats_the_environment(tmp_path):
    arguments = ["train", "mnist", "--epochs", "1", "--json"]
    write(tmp_path, IDX_FILES)
    environment = {"AKKORDEON_DATA": str(tmp_path)}
    assert CliRunner().invoke(app, arguments, env=environment).exit_code == 0
    environment = {"AKKORDEON_DATA": str(tmp_path / "absent")}
    assert CliRunner().invoke(app, arguments, env=environment).exit_code == 1
    assert CliRunner().invoke(app, [*arguments, "--data-dir", str(tmp_path)], env=environment).exit_code == 0


def test_a_function_in_a_file_is_trained(mine):
    outcome = outcome_of(akkordeon("train", f"{mine}:task", "--json"))
    assert outcome["sentinels"]["train"]["samples"] == 128


def test_a_nan_is_null_in_the_json(mine):
    result = akkordeon("train", f"{mine}:nothing_to_score", "--json")
    validate = outcome_of(result)["sentinels"]["validate"]
    assert (validate["loss"], validate["scores"]) == (None, {"accuracy": None})


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────


def test_refused_batches_are_warned_of_and_the_training_goes_on(mine):
    result = akkordeon("train", f"{mine}:some_bad", "--epochs", 1, "--json")
    assert outcome_of(result)["batches"] == {"sent": 20, "trained": 11, "refused": 9, "lost": 0}
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert "batch 3 of train: its " in warnings[0]
    assert "not finite" in warnings[0]
    assert warnings[5:] == [
        "warning: further refused batches are only counted",
        "warning: 9 batches were refused in all",
    ]
    assert "9 refused" in result.stdout


def test_training_of_which_most_was_refused_has_failed(mine):
    result = akkordeon("train", "digits", "--optimizer", "sgd", "--lr", 1e30, "--epochs", 2, expecting=1)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("akkordeon: ")
    assert "not finite" in last


SENTENCES = {
    "no such task": (["cifar"], "there is no task 'cifar'"),
    "a file without its function": (
        ["absent.py"],
        "name the function that makes the task too",
    ),
    "no such file": (["absent.py:make"], "there is no file absent.py"),
    "no such function": (["{mine}:absent"], "has no function 'absent'"),
    "no folder": (["mnist"], "mnist needs the folder of its files"),
    "more than there is": (["--take", "5000"], "cannot take 5000 of 1437 samples"),
    "more parts than samples": (["--take", "3", "--sentinels", "4"], "part 0 of 4 of 3 samples"),
    "no such score": (["--keep-best", "f1"], "best is by 'f1', but the scores are loss, accuracy"),
    "a generator in parts": (["{mine}:endless", "--sentinels", "2"], "can be read only once"),
    "a batch size too late": (["{mine}:some_bad", "--batch-size", "4"], "the batch size is set there"),
    "a wrong shape": (["{mine}:all_bad"], "gate/0 refused batch"),
    "a bad loss": (["{mine}:bad_loss"], "its loss must be one number, got shape (8, 4)"),
    "a module that breaks": (["{mine}:breaks"], "RuntimeError: the fuse blew"),
    "a folder that is a file": ([*QUICK, "--out", "{mine}"], "mine.py cannot be made: File exists"),
}


@pytest.mark.parametrize(("arguments", "sentence"), SENTENCES.values(), ids=SENTENCES.keys())
def test_what_goes_wrong_is_one_sentence_on_stderr(arguments, sentence, mine):
    result = akkordeon("train", *(argument.format(mine=mine) for argument in arguments), expecting=1)
    assert sentence in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("akkordeon: ")


def test_what_was_reached_is_kept_when_a_gate_fails(mine, tmp_path):
    out = tmp_path / "out"
    result = akkordeon("train", f"{mine}:breaks", "--out", out, "--json", expecting=1)
    assert outcome_of(result)["gates"][0]["version"] <= 3
    assert {path.name for path in out.iterdir()} == {WEIGHTS, REPORT, TASK}


def test_what_cannot_begin_leaves_nothing_behind(mine, tmp_path):
    arguments = ["train", f"{mine}:scheduled", "--out", tmp_path / "out"]
    assert "come with a scheduler" in akkordeon(*arguments, "--lr", 0.5, expecting=1).stderr
    assert not (tmp_path / "out").exists()
    akkordeon(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--epochs", "many"],
        ["--staleness", "fresh"],
        ["--optimizer", "sgdm"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    assert "Usage" in akkordeon("train", *arguments, expecting=2).stderr


# ── keeping, testing, predicting ─────────────────────────────────────────────────────────────────────


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


def test_best_weights_of_an_earlier_run_do_not_stay(tmp_path):
    akkordeon("train", *QUICK, "--keep-best", "loss", "--out", tmp_path)
    assert (tmp_path / BEST).exists()
    akkordeon("train", *QUICK, "--out", tmp_path)
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


@pytest.mark.parametrize("command", ["train", "downpour"])
def test_a_seed_that_is_too_large_is_told(command):
    refused = akkordeon(command, "--seed", 10**23, expecting=2)
    assert "Invalid value for '--seed'" in refused.stderr


# ── data and version ─────────────────────────────────────────────────────────────────────────────────


def test_data_are_downloaded_into_the_folder(tmp_path, monkeypatch):
    def fake(name: str, folder: str, progress: bool) -> list[Path]:
        return [Path(folder) / f"{name}.gz"]

    monkeypatch.setattr(download, "download", fake)
    assert akkordeon("data", "mnist", "--data-dir", tmp_path).stdout == f"{tmp_path}/mnist.gz\n"
    akkordeon("data", "mnist", expecting=2)
    akkordeon("data", "cifar", "--data-dir", tmp_path, expecting=2)


def test_the_version_is_that_of_the_package():
    assert akkordeon("--version").stdout == f"akkordeon {version('akkordeon')}\n"


# ── a process of its own ─────────────────────────────────────────────────────────────────────────────


ALONE = [sys.executable, "-c", "from akkordeon_command import main; main()"]


def alone(*arguments: object) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    command = [*ALONE, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "AKKORDEON_DATA"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def read_until(process: subprocess.Popen[str], start: str) -> list[str]:
    """The lines of its output up to the first that starts so."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line starts with {start!r}: {lines}, {process.stderr.read()}")


def test_ctrl_c_stops_with_what_was_reached(tmp_path):
    process = alone("train", "--epochs", 100_000, "--out", tmp_path, "--json")
    read_until(process, "train ")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "stopping with what is reached" in errors
    assert "Traceback" not in errors
    outcome = json.loads(output.splitlines()[-1])
    batches = outcome["batches"]
    assert batches["sent"] == batches["trained"] > 0
    assert batches["lost"] == 0
    assert {gate["version"] for gate in outcome["gates"]} == {batches["trained"]}
    assert outcome["sentinels"]["validate"]["rounds"] >= 1
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, REPORT, TASK}
    found = outcome_of(akkordeon("test", tmp_path, "--json"))
    assert found["loss"] == pytest.approx(outcome["sentinels"]["validate"]["loss"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_as_ctrl_c_does_with_what_was_reached(name, tmp_path):
    process = alone("train", "--epochs", 100_000, "--keep-best", "loss", "--out", tmp_path)
    read_until(process, "validate ")
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + getattr(signal, name)
    assert "stopping with what is reached" in errors
    assert "kept in" in output
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, BEST, REPORT, TASK}
    akkordeon("test", tmp_path, "--best")


def test_weights_are_kept_as_they_come_whatever_ends_the_process(tmp_path):
    process = alone("train", "--epochs", 100_000, "--keep-best", "loss", "--out", tmp_path)
    while not {WEIGHTS, BEST, TASK} <= {path.name for path in tmp_path.iterdir()}:
        read_until(process, "validate ")
    process.kill()
    process.communicate(timeout=WAIT_S)
    for best in ([], ["--best"]):
        assert outcome_of(akkordeon("test", tmp_path, *best, "--json"))["samples"] == 360
    akkordeon("train", *QUICK, "--out", tmp_path)  # the folder is free again


def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path):
    process = alone("train", "--epochs", 30, "--out", tmp_path)
    read_until(process, "train ")
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait(timeout=WAIT_S) == 0
    assert errors.count("\n") == 1
    assert "what shows the training has failed and is left out from now on (BrokenPipeError" in errors
    records = [json.loads(line) for line in (tmp_path / REPORT).read_text().splitlines()]
    assert sum(record["record"] == "EpochDone" for record in records) == 30
    akkordeon("test", tmp_path)


SMALL_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
from akkordeon.cli.main import app
app(sys.argv[1:])
"""


def test_a_full_disk_does_not_end_the_training_and_is_told_once_and_at_the_end(mine, tmp_path):
    command = [sys.executable, "-c", SMALL_FILES, "train", f"{mine}:task", "--epochs", "50", "--json"]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["sentinels"]["train"]["rounds"] == 50
    assert done.stderr.count("the report has failed and is left out from now on") == 1
    assert "report.jsonl cannot be written" in done.stderr
    assert "kept in" not in done.stdout
    assert "Traceback" not in done.stderr
    akkordeon("test", tmp_path / "out", "--trust")  # its weights were small enough


def test_two_runs_do_not_keep_in_one_folder(mine, tmp_path):
    process = alone("train", "--epochs", 100_000, "--out", tmp_path)
    read_until(process, "train ")
    refused = akkordeon("train", *QUICK, "--out", tmp_path, expecting=1)
    assert "another run keeps its weights in" in refused.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)
    kinds = [json.loads(line)["record"] for line in (tmp_path / REPORT).read_text().splitlines()]
    assert kinds[-1] == "Summary"


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be deleted there")
def test_a_folder_deleted_while_training_is_made_again(tmp_path):
    folder = tmp_path / "out"
    process = alone("train", "--epochs", 100_000, "--out", folder)
    read_until(process, "validate ")
    shutil.rmtree(folder)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, errors
    assert {file.name for file in folder.iterdir()} == {WEIGHTS, TASK, REPORT}
    akkordeon("test", folder)


STALLS = """
import threading, torch
import akkordeon as ak
from torch import nn

def batches():
    while True:
        yield torch.randn(4, 6), torch.randint(4, (4,))

class Slow(nn.Linear):
    def forward(self, x):
        if not self.training:
            print("evaluating", flush=True)
            threading.Event().wait(1.0)
        return super().forward(x)

def make():
    x, y = torch.randn(400, 6), torch.randint(4, (400,))
    network = ak.Network([ak.Gate(Slow(6, 4), lambda params: torch.optim.SGD(params, lr=0.1))])
    return ak.Task(network, batches(), ak.Batches(x, y, 4), nn.functional.cross_entropy)
"""


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    (tmp_path / "stalls.py").write_text(STALLS)
    process = alone("train", f"{tmp_path / 'stalls.py'}:make", "--validate-every", "0.05", "--json")
    read_until(process, "evaluating")
    process.send_signal(signal.SIGINT)  # a last validation would take 100 s
    for line in process.stderr:
        if line.startswith("stopping"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "Traceback" not in errors
    batches = json.loads(output.splitlines()[-1])["batches"]
    assert batches["sent"] == batches["trained"] + batches["lost"]


EARLY = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # as on a terminal, whoever runs the tests
sys.meta_path.insert(0, Interrupts())
from akkordeon_command import main
main()
"""


def test_ctrl_c_while_the_package_is_loaded_is_no_traceback():
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_before_the_training_is_no_traceback(tmp_path):
    (tmp_path / "waits.py").write_text(
        "import threading\ndef make():\n    print('waiting', flush=True)\n    threading.Event().wait(60)\n"
    )
    process = alone("train", f"{tmp_path / 'waits.py'}:make")
    read_until(process, "waiting")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (130, "interrupted\n")
