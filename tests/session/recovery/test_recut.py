"""The layers of a checkpoint in other gates."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from tests.session.recovery.test_resume import _batches as batches
from tests.session.recovery.test_resume import _run as run
from torch import nn

import akkordeon as ak


def assert_same(states, others):
    """Whatever gates it is in."""
    one, other = ({n: t for state in each.values() for n, t in state.items()} for each in (states, others))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


class Scaled(nn.Module):
    """Has buffers outside of its blocks: one that stays, and one that it counts its batches in."""

    def __init__(self):
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.batches += 1
        return self.out(self.norm(self.into(x) * self.scale).relu() * self.scale)


# Buffers outside of the blocks are in each gate that a module was cut into. As their names came several
# times, layers went by their order, and the same model in other gates was refused as another network.
@pytest.mark.parametrize("cuts", [[], ["norm"], ["norm", "out"]], ids=len)
def test_a_module_with_buffers_outside_of_its_blocks_goes_on_in_other_gates(cuts):
    torch.manual_seed(0)
    model = Scaled()

    def network(cuts):
        gates = None if cuts else 1
        return ak.Network.from_module(
            model, gates, torch.optim.AdamW, example=torch.randn(4, 6), cut_before=cuts, accumulate=5
        )

    whole, kept, _ = run(network(["out"]), batches)
    again, _, _ = run(network(cuts), batches, resume=kept[1])
    assert kept[1].stages["gate/0"].learner["gathered"]["batches"]
    assert_same(whole, again)


# A gate whose layers have statistics alone got the optimizer of the gate that they were in, and was refused.
def test_a_layer_without_weights_goes_on_in_a_gate_of_its_own():
    torch.manual_seed(0)
    layers = {"into": nn.Linear(6, 16), "norm": nn.BatchNorm1d(16, affine=False), "out": nn.Linear(16, 2)}
    model = nn.Sequential(OrderedDict(layers))
    networks = [
        ak.Network.from_module(model, optimizer=torch.optim.AdamW, cut_before=cuts)
        for cuts in (["out"], ["norm", "out"])
    ]
    whole, kept, _ = run(networks[0], batches)
    again, _, _ = run(networks[1], batches, resume=kept[1])
    assert_same(whole, again)
