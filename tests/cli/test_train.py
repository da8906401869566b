"""`akkordeon train`: what it says, what can be chosen, and what goes wrong."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from tests.data.test_datasets import IDX_FILES, write
from tests.support.commands import QUICK, akkordeon, outcome_of
from typer.testing import CliRunner

from akkordeon.cli.main import app
from akkordeon.experiments.run_folder import REPORT, TASK, WEIGHTS
from akkordeon.pipeline.staleness.named import RULES

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
    assert outcome.keys() == {"sentinels", "gates", "batches", "restarts", "seconds", "samples_per_s"}
    train, validate = outcome["sentinels"]["train"], outcome["sentinels"]["validate"]
    assert train.keys() == validate.keys() == {"role", "rounds", "loss", "scores", "samples", "seconds"}
    assert (train["role"], train["rounds"], train["samples"]) == ("train", 2, 512)
    assert validate["role"] == "validate"
    assert validate["rounds"] in (1, 2)  # what fell due during a round made one more
    assert outcome["batches"] == {"sent": 16, "trained": 16, "refused": 0, "lost": 0}
    assert [gate["version"] for gate in outcome["gates"]] == [16, 16, 16]
    for gate in outcome["gates"]:
        assert gate.keys() == {"name", "version", "staleness_mean", "staleness_max", "staleness"}
        assert sum(gate["staleness"].values()) == 16


def test_how_stale_gradients_were_is_measured_printed_and_kept(tmp_path):
    result = akkordeon("train", *QUICK, "--in-flight", 4, "--diagnose-every", 4, "--out", tmp_path, "--json")
    lines = result.stdout.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("gate "))
    assert lines[heading].split()[-7:] == ["measured", "cosine", "min", "correction", "max", "copies", "MB"]
    gates = outcome_of(result)["gates"]
    assert [line.split()[0] for line in lines[heading + 1 : heading + 4]] == [gate["name"] for gate in gates]
    for gate in gates:
        assert gate["diagnosis"]["every"] == gate["diagnosis"]["batches"] == 4  # of 16
        assert -1 <= gate["diagnosis"]["cosine_min"] <= gate["diagnosis"]["cosine_mean"] <= 1
        assert sum(gate["staleness"].values()) == 16
    kept = json.loads((tmp_path / REPORT).read_text().splitlines()[-1])
    assert kept["gates"] == gates
    assert json.loads((tmp_path / TASK).read_text())["diagnose_every"] == 4


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


@pytest.mark.parametrize(("schedule", "staleness"), [("flush", 0.0), ("2bw", 12 / 16)])
def test_a_schedule_is_kept_to(schedule, staleness, tmp_path):
    options = ["--schedule", schedule, "--accumulate", 4, "--in-flight", 3, "--out", tmp_path]
    outcome = outcome_of(akkordeon("train", *QUICK, *options, "--json"))
    assert {(gate["version"], gate["staleness_mean"]) for gate in outcome["gates"]} == {(4, staleness)}
    assert outcome["batches"]["trained"] == 16
    akkordeon("test", tmp_path)


def test_a_schedule_of_nobody_knows_how_many_batches_is_refused():
    refused = akkordeon("train", "--schedule", "flush", "--accumulate", "4", "--warm-up", "50", expecting=1)
    assert "warm_up=50 goes with no schedule=Flush(micro_batches=4)" in refused.stderr
    refused = akkordeon("train", "--schedule", "flush", expecting=1)
    assert "the schedule 'flush' needs to know of how many batches an update is made" in refused.stderr
