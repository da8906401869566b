"""Training in a process of its own: signals, full disks, folders that are taken or gone."""

from __future__ import annotations

import json
import shutil
import signal
import sys

import pytest
from tests.support.commands import QUICK, akkordeon, alone, outcome_of, read_until
from tests.support.forks import COMMAND, python
from tests.support.harness import WAIT_S

from akkordeon.experiments.run_folder import BEST, REPORT, TASK, WEIGHTS


def test_ctrl_c_stops_with_what_was_reached(tmp_path):
    process = alone("train", "--epochs", 100_000, "--out", tmp_path, "--json", code=COMMAND)
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
    process = alone("train", "--epochs", 5, "--out", tmp_path, code=COMMAND)
    read_until(process, "train ")
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait(timeout=WAIT_S) == 0
    assert errors.count("\n") == 1
    assert "what shows the training has failed and is left out from now on (BrokenPipeError" in errors
    records = [json.loads(line) for line in (tmp_path / REPORT).read_text().splitlines()]
    assert sum(record["record"] == "EpochDone" for record in records) == 5
    akkordeon("test", tmp_path)


SMALL_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
from akkordeon.cli.main import app
app(sys.argv[1:])
"""


def test_a_full_disk_does_not_end_the_training_and_is_told_once_and_at_the_end(mine, tmp_path):
    options = ["--epochs", 50, "--json", "--out", tmp_path / "out"]
    done = python(SMALL_FILES, "train", f"{mine}:task", *options)
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
