"""`akkordeon train --checkpoint-every` and `akkordeon resume`."""

from __future__ import annotations

import json
import signal

import pytest
import safetensors.torch
import torch
from tests.support.commands import QUICK, akkordeon, alone, outcome_of, read_until
from tests.support.harness import WAIT_S

import akkordeon as ak
from akkordeon.experiments.run_folder import BEST, REPORT, TASK, WEIGHTS
from akkordeon.session.recovery.checkpoint_files import CHECKPOINTS

REPEATABLE = ["--workers", 1, "--seed", 3, "--checkpoint-every", "20u", "--keep-best", "loss"]
EPOCHS = 16


def weights_in(folder, name=WEIGHTS):
    return safetensors.torch.load_file(folder / name)


def records_in(folder):
    return [json.loads(line) for line in (folder / REPORT).read_text().splitlines()]


def checkpoints_in(folder):
    return sorted(path for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.name.isdigit())


def killed(folder, *arguments):
    """Run a command until an epoch is done and a checkpoint written by it, and kill it."""
    before = checkpoints_in(folder)
    process = alone(*arguments)
    read_until(process, "train")
    while checkpoints_in(folder) == before or not (folder / TASK).exists():
        read_until(process, "train")
    process.kill()
    process.communicate(timeout=WAIT_S)


# ── going on ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_killed_twice_ends_with_the_bits_of_the_one_that_never_stopped(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    akkordeon("train", "--epochs", EPOCHS, *REPEATABLE, "--out", whole)
    killed(broken, "train", "--epochs", EPOCHS, *REPEATABLE, "--out", broken)
    killed(broken, "resume", broken)
    done = akkordeon("resume", broken, "--json")
    assert outcome_of(done)["batches"]["trained"] == EPOCHS * 45
    assert "going on from checkpoint" in done.stderr
    for name in (WEIGHTS, BEST):
        one, other = weights_in(whole, name), weights_in(broken, name)
        assert all(torch.equal(one[key], other[key]) for key in one)
    epochs = [each["epoch"] for each in records_in(broken) if each["record"] == "EpochDone"]
    assert set(epochs) == set(range(1, EPOCHS + 1))
    assert [each["record"] for each in records_in(broken)].count("Resumed") == 2
    assert len(checkpoints_in(broken)) == 3
    akkordeon("test", broken, "--best")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_leaves_a_last_checkpoint_and_says_how_to_go_on(name, tmp_path):
    options = ["--epochs", 300, "--checkpoint-every", "1000u", "--checkpoints-kept", 1, "--out", tmp_path]
    process = alone("train", *options)
    read_until(process, "validate ")
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + getattr(signal, name)
    assert f"kept in {tmp_path}; `akkordeon resume {tmp_path}` goes on" in output
    assert "Traceback" not in errors
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, REPORT, TASK, CHECKPOINTS}
    (checkpoint,) = checkpoints_in(tmp_path)
    reached = outcome_of_report(tmp_path)["batches"]
    assert reached["sent"] == reached["trained"] > 0
    kept = safetensors.torch.load_file(checkpoint / "gate-0.safetensors")
    assert all(torch.equal(kept[key], weights_in(tmp_path)[f"0.{key}"]) for key in kept)


def outcome_of_report(folder):
    (*_, last) = records_in(folder)
    assert last["record"] == "Summary"
    return last


def test_a_run_stopped_by_a_signal_goes_on_to_its_planned_end(tmp_path):
    process = alone("train", "--epochs", EPOCHS, *REPEATABLE, "--out", tmp_path)
    read_until(process, "validate ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    before = outcome_of_report(tmp_path)["batches"]["trained"]
    assert 0 < before < EPOCHS * 45
    outcome = outcome_of(akkordeon("resume", tmp_path, "--json"))
    assert outcome["batches"]["trained"] == EPOCHS * 45
    assert outcome["sentinels"]["train"]["rounds"] == EPOCHS
    assert "checkpoint" not in outcome["sentinels"]


def test_a_run_that_is_over_is_over(tmp_path):
    akkordeon("train", *QUICK, *REPEATABLE, "--out", tmp_path)
    before = weights_in(tmp_path)
    outcome = outcome_of(akkordeon("resume", tmp_path, "--json"))
    assert outcome["batches"]["trained"] == 16
    after = weights_in(tmp_path)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_run_goes_on_with_other_workers(tmp_path):
    killed(tmp_path, "train", "--epochs", 200, *REPEATABLE, "--out", tmp_path)
    process = alone("resume", tmp_path, "--workers", 2, "--checkpoint-every", "0.2")
    read_until(process, "train ")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, errors
    assert "goes on" in output


def test_a_run_goes_on_in_python_with_network_and_sentinels_of_its_task(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ["--in-flight", 1, "--epochs", EPOCHS, *REPEATABLE]
    akkordeon("train", *options, "--out", whole)
    killed(broken, "train", *options, "--out", broken)
    with ak.resume(broken, engine=ak.Threads(workers=1)) as session:
        session.wait(WAIT_S)
        expected, got = weights_in(whole), session.module().state_dict()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_replicas_and_shards_go_on(tmp_path):
    options = ["--epochs", EPOCHS, "--workers", 1, "--checkpoint-every", "30u", "--out", tmp_path]
    killed(tmp_path, "downpour", "digits", "--replicas", 2, *options)
    outcome = outcome_of(akkordeon("resume", tmp_path, "--json"))
    assert outcome["sentinels"]["train-0"]["rounds"] == EPOCHS
    assert outcome["sentinels"]["validate"]["scores"]["accuracy"] > 0.8


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path):
    akkordeon("train", *QUICK, "--workers", 1, "--checkpoint-every", "5u", "--out", tmp_path)
    akkordeon("resume", tmp_path)
    *_, before, last = checkpoints_in(tmp_path)
    (last / "gate-1.safetensors").write_bytes(b"damaged")
    done = akkordeon("resume", tmp_path)
    assert f"{last.name} is refused: gate-1.safetensors has 7 bytes instead of" in done.stderr
    number = json.loads((before / "run.json").read_text())["number"]
    assert f"going on from checkpoint {number} in" in done.stderr


def test_a_new_run_in_the_folder_removes_the_checkpoints_of_the_earlier_one(tmp_path):
    akkordeon("train", *QUICK, "--checkpoint-every", "5u", "--out", tmp_path)
    assert checkpoints_in(tmp_path)
    akkordeon("train", *QUICK, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, REPORT, TASK}


def test_a_task_is_there_as_soon_as_a_checkpoint_is(mine, tmp_path):
    """Weights come with the first validation, which may be hours after the first checkpoint."""
    folder = tmp_path / "out"
    process = alone(
        "train", f"{mine}:endless", "--checkpoint-every", "5u", "--validate-every", 1000, "--out", folder
    )
    while not (folder / TASK).exists():
        assert process.poll() is None
    assert checkpoints_in(folder)
    assert not (folder / WEIGHTS).exists()
    process.kill()
    process.communicate(timeout=WAIT_S)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────


def test_another_model_is_refused_with_what_differs(mine, tmp_path):
    folder = tmp_path / "out"
    akkordeon("train", f"{mine}:task", "--checkpoint-every", "5u", "--out", folder)
    mine.write_text(mine.read_text().replace("nn.Linear(6, 5)", "nn.Linear(6, 9)"))
    refused = akkordeon("resume", folder, "--trust", expecting=1)
    assert "another network: bias of gate/0 is (5,) there and (9,) here" in refused.stderr


def test_a_file_of_python_is_run_only_if_it_is_trusted(mine, tmp_path):
    akkordeon("train", f"{mine}:task", "--checkpoint-every", "5u", "--out", tmp_path / "out")
    refused = akkordeon("resume", tmp_path / "out", expecting=1)
    assert "give --trust if you trust it" in refused.stderr
    akkordeon("resume", tmp_path / "out", "--trust")


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    refused = akkordeon("resume", tmp_path / "none", expecting=1)
    assert "none does not exist" in refused.stderr
    akkordeon("train", *QUICK, "--out", tmp_path / "out")
    refused = akkordeon("resume", tmp_path / "out", expecting=1)
    assert "there is no checkpoint in" in refused.stderr


@pytest.mark.parametrize("every", ["0", "0u", "u", "5x", "-3", "nan", "1e9u"])
def test_a_rhythm_that_is_none_is_refused(every, tmp_path):
    refused = akkordeon("train", "--checkpoint-every", every, "--out", tmp_path, expecting=1)
    assert f"as in 30, or updates, as in 500u, got '{every}'" in refused.stderr


def test_checkpoints_without_a_folder_are_refused():
    refused = akkordeon("train", "--checkpoint-every", "30", expecting=1)
    assert "name one with --out DIR" in refused.stderr


def test_a_run_with_checkpoints_can_be_recorded_and_replayed(tmp_path):
    options = ["--workers", 1, "--checkpoint-every", "5u", "--out", tmp_path / "out"]
    akkordeon("train", *QUICK, *options, "--record", tmp_path / "run.record")
    akkordeon("replay", tmp_path / "run.record")
