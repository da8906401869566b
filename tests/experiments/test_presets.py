"""Rules and optimizers by name: akkordeon.experiments.presets."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import small_network
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.experiments.build import build_network
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.presets import OPTIMIZERS, optimizer_named, rule_named, with_lr
from akkordeon.experiments.tasks.loader import load_task
from akkordeon.pipeline.staleness.named import RULES


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_made_with_its_usual_rate_or_another(name):
    parameters = [nn.Parameter(torch.ones(2))]
    if "muon" in name or name == "basis-rotation":
        parameters = [("weight", parameters[0])]
    usual = optimizer_named(name)(parameters)
    other = optimizer_named(name, lr=0.125)(parameters)
    assert usual.param_groups[0]["lr"] == OPTIMIZERS[name][1]
    assert other.param_groups[0]["lr"] == 0.125
    assert type(usual) is type(other)


def test_momentum_is_sgd_with_momentum():
    (group,) = optimizer_named("momentum")([nn.Parameter(torch.ones(2))]).param_groups
    assert group["momentum"] == 0.9


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_fused_where_pytorch_has_a_kernel_for_its_parameters(name):
    real, complex_ = (nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float64, torch.complex64))
    assert optimizer_named(name)([real]).param_groups[0]["fused"]
    optimizer = optimizer_named(name)([real, complex_])
    real.grad, complex_.grad = torch.ones_like(real), torch.ones_like(complex_)
    optimizer.step()
    assert not torch.equal(complex_, torch.ones_like(complex_))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_name(name):
    assert isinstance(rule_named(name), ak.Rule)


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(RecipeError, match="no optimizer 'adamax'; there are sgd, momentum, adam, adamw"):
        optimizer_named("adamax")
    with pytest.raises(RecipeError, match="no staleness rule 'fresh'; there are age-weighted, annealed, "):
        rule_named("fresh")


def test_another_rate_is_given_to_every_optimizer_of_a_network_and_nothing_else_changes():
    network = small_network()
    for gate in with_lr(network, 0.25).gates:
        (group,) = gate.optimizer(gate.module.parameters()).param_groups
        assert (group["lr"], group["momentum"]) == (0.25, 0.9)
    assert network.gates[0].optimizer(network.gates[0].module.parameters()).param_groups[0]["lr"] == 0.05


def test_another_rate_is_given_to_optimizers_that_ask_for_names():
    """The function around theirs did not ask, so they were given parameters alone."""
    network = with_lr(ak.Network([ak.Gate(nn.Linear(2, 2), optimizer_named("muon"))]), 0.25)
    with ak.run(network, engine=ak.Threads(1)):
        pass
    groups = network.gates[0].optimizer(network.gates[0].module.named_parameters()).param_groups
    assert [group["lr"] for group in groups] == [0.25, 0.25]


def test_settings_clip_the_norm_of_the_whole_gradient():
    assert build_network(load_task("xor"), TrainConfig("xor", clip_norm=0.5)).clip_whole_norm == 0.5
    assert build_network(load_task("xor"), TrainConfig("xor")).clip_whole_norm is None


def test_settings_have_every_gate_that_learns_accumulate():
    network = build_network(load_task("xor"), TrainConfig("xor", accumulate=4))
    assert [gate.accumulate for gate in network.gates] == [4, 4]
    assert [gate.accumulate for gate in build_network(load_task("xor"), TrainConfig("xor")).gates] == [1, 1]


def test_a_gate_without_an_optimizer_stays_without():
    network = ak.Network([ak.Gate(nn.ReLU())])
    assert with_lr(network, 0.25).gates[0].optimizer is None


def test_a_rate_beside_a_scheduler_is_refused():
    def scheduled(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)

    network = with_lr(ak.Network([ak.Gate(nn.Linear(2, 2), scheduled)]), 0.5)
    with pytest.raises(
        RecipeError, match=r"cannot be set to 0\.5: the task's optimizers come with a scheduler"
    ):
        ak.run(network)
