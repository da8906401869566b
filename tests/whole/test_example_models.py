"""What examples train: one batch in flight is the plain loop, and weights are those of the plain class."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tests.support.costs import operations
from tests.support.examples import SHOWN, Shown, logits, outputs
from torch import nn

import akkordeon as ak
from akkordeon.pipeline.splitting import cost


@pytest.fixture(autouse=True)
def cuts_are_the_same_on_a_busy_machine(monkeypatch):
    """Where cuts are within blocks that follow each other, gradients may be summed up in another order."""
    monkeypatch.setattr(cost, "_seconds", operations)


def trained_plainly(shown: Shown) -> nn.Module:
    """The loop that everybody writes."""
    model = copy.deepcopy(shown.model).train()
    made = shown.optimizer([weight for weight in model.parameters() if weight.requires_grad])
    optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
    for x, y in shown.batches:
        optimizer.zero_grad()
        shown.loss(outputs(model, x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return model


def trained(shown: Shown, gates: int) -> nn.Module:
    """One batch in flight in a row on two threads."""
    with ak.run(shown.network(gates), ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train(shown.batches, shown.loss))
        session.wait(timeout=60)
        return session.module()


@pytest.mark.parametrize("gates", [2, 4])
@pytest.mark.parametrize("name", SHOWN)
def test_one_batch_in_flight_gives_the_bits_of_the_plain_loop(name, gates):
    shown = SHOWN[name]()
    state, wanted = trained(shown, gates).state_dict(), trained_plainly(shown).state_dict()
    assert list(state) == list(wanted)
    for each in wanted:
        assert torch.equal(state[each], wanted[each]), each
    moved = [each for each, weight in shown.model.state_dict().items() if not weight.equal(state[each])]
    assert moved


LOADED = """
import sys
import torch
from safetensors.torch import load_file
from tests.support.examples import SHOWN, logits
for name in sys.argv[1:]:
    model = SHOWN[name]().model
    model.load_state_dict(load_file(f"{name}.safetensors"))
    x, expected = torch.load(f"{name}.outputs")
    assert torch.equal(logits(model.eval(), x), expected), name
"""


def test_weights_load_into_the_plain_classes_in_a_fresh_process(tmp_path):
    for name, make in SHOWN.items():
        shown = make()
        model, x = trained(shown, gates=2).eval(), shown.batches[0][0]
        apart = {each: weight.clone() for each, weight in model.state_dict().items()}  # tied ones are one
        save_file(apart, tmp_path / f"{name}.safetensors")
        torch.save((x, logits(model, x).detach()), tmp_path / f"{name}.outputs")
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *SHOWN],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
