"""The command line as tests run it: here, or as a process of its own; and tasks in a file of the user's."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.forks import Forked
from typer.testing import CliRunner, Result

from akkordeon.cli.main import app

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


def alone(*arguments: object, code: str | None = None) -> Forked:
    """The command line as a process of its own; ``code`` that runs it also ends as an interpreter does."""
    environment = {name: value for name, value in os.environ.items() if name != "AKKORDEON_DATA"}
    return Forked(*map(str, arguments), folder=Path.cwd(), environment=environment, code=code)


def read_until(process: Forked, start: str) -> list[str]:
    """The lines of its output up to the first that starts so."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line starts with {start!r}: {lines}, {process.stderr.read()}")
