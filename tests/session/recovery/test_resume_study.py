"""Studies of runs that are taken up: killed at many moments, and by another engine in other gates."""

from __future__ import annotations

import random
import subprocess
from statistics import mean

import pytest
import safetensors.torch
import torch
from tests.support.commands import akkordeon, alone, outcome_of, read_until
from tests.support.harness import WAIT_S
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import EpochDone
from akkordeon.data.datasets import digits
from akkordeon.experiments.run_folder import BEST, WEIGHTS
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CHECKPOINTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS, EPOCHS = 20, 1000
SEEDS, HALF, ROUNDS = range(3), 450, 20


def test_a_run_killed_at_twenty_random_moments_ends_with_the_bits_of_the_one_that_never_stopped(tmp_path):
    rng = random.Random(20)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    how = [
        "--epochs",
        EPOCHS,
        "--workers",
        1,
        "--seed",
        3,
        "--checkpoint-every",
        "20u",
        "--keep-best",
        "loss",
    ]
    akkordeon("train", *how, "--out", whole)
    command, reached = ["train", *how, "--out", broken], []
    for _ in range(KILLS):
        process = alone(*command)
        read_until(process, "train")
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=rng.uniform(0.0, 1.0))
        process.kill()
        process.communicate(timeout=WAIT_S)
        command = ["resume", broken]
        reached.append(
            max(int(path.name) for path in (broken / CHECKPOINTS).iterdir() if path.name.isdecimal())
        )
    assert reached == sorted(reached), "it went on, rather than from the beginning"
    print(f"killed at the checkpoints {reached} of {EPOCHS * 45 // 20}")
    done = akkordeon("resume", broken, "--json")
    assert outcome_of(done)["batches"]["trained"] == EPOCHS * 45
    for name in (WEIGHTS, BEST):
        one, other = (safetensors.torch.load_file(folder / name) for folder in (whole, broken))
        assert all(torch.equal(one[key], other[key]) for key in one), name


# ── accuracy at equal samples ────────────────────────────────────────────────────────────────────────


def _network(seed, gates):
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10)]
    return ak.Network.from_module(nn.Sequential(*layers), gates, lambda p: torch.optim.Adam(p, 1e-3))


def _trained(recipe, engine, seed, resume=None):
    """The accuracy on the test data after all batches, the epochs that were trained, and the checkpoints."""
    data, epochs, kept = digits(), [], []
    batches = ak.Batches(*data.train, 32, shuffle=True, seed=seed)
    with ak.run(recipe, engine, seed=seed, resume=resume) as session:

        def watch(record):
            if isinstance(record, Checkpoint):
                kept.append(record)
            if isinstance(record, EpochDone):
                epochs.append(record.epoch)

        session.subscribe(watch, inline=True)
        session.attach(ak.Sentinel.train(batches, cross_entropy, epochs=ROUNDS, in_flight=3, name="t"))
        if resume is None:
            session.attach(ak.Sentinel.checkpoint(every_updates=HALF, name="c"))
        session.wait(timeout=WAIT_S)
        module = session.module().eval()
    return float(ak.accuracy(module(data.test[0]), data.test[1])), epochs, kept


RUNS = {
    "a row": lambda seed: (_network(seed, 3), ak.Threads(2), _network(seed, 2), ak.Simulator(seed=seed)),
    "a Downpour": lambda seed: (
        ak.Downpour(_network(seed, 2), replicas=2, push_every=1),
        ak.Threads(2),
        ak.Downpour(_network(seed, 2), replicas=2, push_every=1),
        ak.Simulator(seed=seed),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_taken_up_elsewhere_learns_as_well_as_the_one_that_never_stopped(name):
    whole, again = [], []
    for seed in SEEDS:
        recipe, engine, other, elsewhere = RUNS[name](seed)
        accuracy, _, kept = _trained(recipe, engine, seed)
        whole.append(accuracy)
        accuracy, epochs, _ = _trained(other, elsewhere, seed, kept[0])
        again.append(accuracy)
        assert min(epochs) >= ROUNDS // 2, "it went on, rather than from the beginning"
        assert max(epochs) == ROUNDS
    print(f"{name}: never stopped {whole}, taken up elsewhere {again}")
    assert abs(mean(whole) - mean(again)) < 0.01
