"""A gate that computes again what it does not keep has the bits of one that keeps it (recomputed.py)."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import (
    WAIT_S,
    backward,
    batches_of,
    do,
    forward,
    gate_alone,
    same_bits,
    sgd,
    small_network,
)
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import GateFailedError, RecipeError


class Warm(nn.Module):
    """Computes with a buffer that it writes to, and works in place on a dict that it is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(7, 7)
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, x):
        self.seen += 1
        given = {"x": self.layer(x)}
        return given.pop("x").mul_(1 - 0.5**self.seen)


BETWEEN = {
    "normalisation": lambda: nn.BatchNorm1d(7),
    "dropout": lambda: nn.Dropout(0.4),
    "dropout by batch": lambda: ak.nn.Dropout(0.4),
    "a buffer that counts": Warm,
    "work in place on the input": lambda: nn.ReLU(inplace=True),
    "a kernel that writes what it keeps": nn.RReLU,
}


def trained(between, in_flight, **settings):
    torch.manual_seed(0)
    parts = nn.Linear(6, 7), nn.Sequential(between(), nn.Linear(7, 7), nn.Tanh()), nn.Linear(7, 4)
    network = ak.Network([ak.Gate(part, sgd) for part in parts]).replacing(**settings)
    batches = batches_of(12)
    with ak.run(network, ak.Threads(1)) as session:
        session.attach(ak.Sentinel.validate(batches[:2], F.cross_entropy, every_updates=3))
        training = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight))
        session.wait(timeout=WAIT_S)
        assert training.batches.trained == 12
        return session.module()


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_it_has_the_bits_of_a_gate_that_keeps_all(between, in_flight):
    assert same_bits(trained(between, in_flight, recompute=True), trained(between, in_flight))


def test_it_accumulates_too():
    plain, again = (trained(nn.ReLU, 3, accumulate=2, recompute=recompute) for recompute in (False, True))
    assert same_bits(plain, again)


@pytest.mark.parametrize("recompute", [False, True])
def test_nothing_of_what_the_module_computes_is_kept(recompute):
    module = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 4))
    gate = gate_alone(module, recompute=recompute)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        do(gate, forward(0, torch.randn(3, 6)))
    assert any(tensor.shape == (3, 50) for tensor in kept) is not recompute
    assert all(tensor.shape == (3, 6) for tensor in kept) is recompute
    do(gate, backward(0, torch.randn(3, 4)))
    assert gate.version == 1


def test_a_downpour_recomputes_too():
    def trained(recompute):
        torch.manual_seed(0)
        row = small_network().replacing(recompute=recompute)
        with ak.run(ak.Downpour(row, replicas=1, fetch="wait"), ak.Threads(1)) as session:
            session.attach(ak.Sentinel.train(batches_of(6), F.cross_entropy))
            session.wait(timeout=WAIT_S)
            return session.module()

    assert same_bits(trained(True), trained(False))


class Clipped(nn.Linear):
    """Writes to its weights in the forward."""

    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(-0.3, 0.3)
        return super().forward(x)


def test_a_module_that_writes_to_its_weights_is_refused_in_a_sentence():
    gates = [ak.Gate(nn.Linear(6, 7), sgd), ak.Gate(Clipped(7, 4), sgd, recompute=True)]
    with ak.run(ak.Network(gates)) as session:
        training = session.attach(ak.Sentinel.train(batches_of(6), F.cross_entropy))
        with pytest.raises(
            GateFailedError, match="writes to its weight 'weight' in the forward, which a second"
        ):
            training.wait(timeout=WAIT_S)
    with pytest.raises(RecipeError, match="recompute is True or False, got 3"):
        ak.Gate(nn.Linear(6, 7), sgd, recompute=3)
