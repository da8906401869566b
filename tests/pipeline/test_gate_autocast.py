"""A gate that runs its module under an autocast of its own."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, sgd
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.LayerNorm(9), nn.Linear(9, 4))


def loss(outputs, y):
    return F.cross_entropy(outputs.float(), y)


def trained(network, batches, **run):
    with ak.run(network, **run) as session:
        session.attach(ak.Sentinel.train(batches, loss)).wait(timeout=WAIT_S)
        return session.module(), session.predict(batches[0][0], timeout=WAIT_S)


@pytest.mark.parametrize("recompute", [False, True])
def test_one_gate_runs_in_bfloat16_and_the_other_does_not(recompute):
    batches, layers = batches_of(10), made()
    gates = [
        ak.Gate(layers[:3], sgd, autocast=torch.bfloat16, recompute=recompute),
        ak.Gate(nn.Sequential(Wide(), layers[3:]), sgd),
    ]
    ours, predicted = trained(ak.Network(gates), batches)
    expected = made()
    optimizer = sgd(expected.parameters())

    def outputs(x):
        with torch.autocast("cpu", torch.bfloat16):
            x = expected[:3](x)
        assert x.dtype is torch.bfloat16
        return expected[3:](x.float())

    for x, y in batches:
        optimizer.zero_grad()
        loss(outputs(x), y).backward()
        optimizer.step()
    for mine, theirs in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(predicted, outputs(batches[0][0]))


class Wide(nn.Module):
    def forward(self, x):
        return x.float()


def test_it_goes_before_the_autocast_of_who_runs_the_network_and_shards_evaluate_under_it():
    row = ak.Network.from_module(made(), 2, sgd, autocast=torch.bfloat16)
    batches = batches_of(6)
    _, predicted = trained(ak.Downpour(row, replicas=1), batches)
    with torch.autocast("cpu", torch.float16):
        _, inside = trained(row, batches)
    assert predicted.dtype is inside.dtype is torch.bfloat16


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("gates", [1, 3])
def test_a_model_cut_by_an_example_trains_as_the_whole_under_autocast(gates):
    """With several gates the terms of the sum have gradients in bfloat16, and are rounded one by one."""
    torch.manual_seed(0)
    model, batches = Residual(), batches_of(10)
    row = ak.Network.from_module(model, gates, sgd, example=batches[0][0], autocast=torch.bfloat16)
    ours, _ = trained(row, batches)
    optimizer = sgd(model.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(x)
        loss(outputs, y).backward()
        optimizer.step()
    for mine, theirs in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0 if gates == 1 else 5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sum_over_several_gates_is_cut_under_autocast_and_in_types_of_few_bits(dtype):
    """It was refused for gradients that were rounded in another order."""
    torch.manual_seed(0)
    model, example = Residual(), torch.randn(8, 6)
    with torch.autocast("cpu", dtype):
        assert len(ak.Network.from_module(model, 3, sgd, example=example).gates) == 3
    few = ak.Network.from_module(model.to(dtype), 3, sgd, example=example.to(dtype))
    assert len(few.gates) == 3


@pytest.mark.parametrize("engine", [lambda: ak.Threads(workers=1), ak.Simulator])
def test_under_autocast_of_the_caller_weights_that_are_updated_in_place_are_cast_anew(engine):
    """In the simulator, which works in the caller's thread, PyTorch kept what it had cast until the outermost
    autocast was over: such weights computed as they were at first, and of others all versions were kept.
    """
    batches = batches_of(10)
    row = ak.Network.from_module(made(), 2, sgd, ak.Latest())
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = trained(row, batches, engine=engine())
    expected = made()
    optimizer = sgd(expected.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = expected(x)
        loss(outputs, y).backward()
        optimizer.step()
    for mine, theirs in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_type_is_refused_in_a_sentence():
    with pytest.raises(
        RecipeError, match=r"autocast is torch\.bfloat16, torch\.float16 or None, got torch\.int8"
    ):
        ak.Gate(nn.Linear(6, 4), sgd, autocast=torch.int8)
