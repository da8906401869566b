"""A gate at work goes on from what another gate like it has learned, or as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.support.harness import backward, do, forward, gate_alone, reports, same_bits, sends
from torch import nn

import akkordeon as ak
from akkordeon.core.messages import Cut, CutId, Export, Exported
from akkordeon.core.plain_state import StageState
from akkordeon.core.reports import MessageRefused
from akkordeon.core.streams.messages import TakeOver

ME = "sentinel/s#1"


def gate(**recipe):
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    return gate_alone(module, **recipe)


def trained(updates=3, **recipe):
    """A gate that has learned something, with momentum."""
    actor = gate(**recipe)
    for number in range(updates):
        do(actor, forward(number, torch.randn(5, 4)), backward(number, torch.randn(5, 3)))
    return actor


def state_of(actor) -> StageState:
    cut = CutId("a", actor.version)
    (exported,) = sends(do(actor, Cut(cut, whole=True), Export(cut)), Exported)
    return copy.deepcopy(StageState(0, exported.state, exported.learner))


def take_over(actor, *states) -> list:
    return do(actor, TakeOver(ME, states))


def test_it_learns_on_as_the_other_would_have():
    other, actor = trained(), trained(1)
    take_over(actor, state_of(other))
    assert same_bits(actor.module, other.module)
    for number in (10, 11):
        x, gradient = torch.randn(5, 4), torch.randn(5, 3)
        for each in (actor, other):
            do(each, forward(number, x), backward(number, gradient))
    assert same_bits(actor.module, other.module)


def test_it_is_another_version_and_the_gate_before_is_told_next():
    actor, first, own = trained(), state_of(trained()), state_of(trained())
    (passed,) = sends(take_over(actor, first, own))
    assert (passed.asker, passed.states) == (ME, (first,))
    assert actor.version == 4


def test_a_cut_keeps_the_weights_and_buffers_it_has_pinned():
    actor = trained()
    cut = CutId("v", 0)
    do(actor, Cut(cut))
    before = copy.deepcopy(actor.module.state_dict())
    take_over(actor, state_of(trained()))
    (exported,) = sends(do(actor, Export(cut)), Exported)
    assert same_bits(exported.state, before)


def test_a_batch_in_flight_has_its_gradient_on_the_weights_of_its_forward():
    actor, twin = trained(), None
    twin = copy.deepcopy(actor.module)
    x, gradient = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3)
    do(actor, forward(10, x.detach()))
    take_over(actor, state_of(trained()))
    sent, *_ = sends(do(actor, backward(10, gradient)))
    (expected,) = torch.autograd.grad(twin(x), x, gradient)
    assert torch.equal(sent.payload, expected)


def test_an_average_comes_along():
    other, actor = trained(ema=0.5), trained(ema=0.5)
    take_over(actor, state_of(other))
    assert all(map(torch.equal, actor.weights.pin(averaged=True), other.weights.pin(averaged=True)))


def without_learner():
    return StageState(0, state_of(trained()).tensors)


def of_another_module():
    return state_of(gate_alone(nn.Linear(4, 7)))


def not_finite():
    state = state_of(trained())
    state.tensors["0.weight"].fill_(torch.nan)
    return state


def with_more():
    state = state_of(trained())
    return StageState(0, {**state.tensors, "5.bias": torch.ones(1)}, state.learner)


# A gate that was set to another optimizer after its stream was attached refused what its shadow had learned,
# and the other gates took it: half a network went on with the weights of the other half's past.
@pytest.mark.parametrize("other", [{"optimizer": torch.optim.Adam}, {"staleness": ak.InverseStaleness()}])
def test_one_that_learns_with_something_else_has_the_weights_and_begins_with_that_as_new(other):
    shadow, actor = trained(), trained(**other)
    assert not reports(take_over(actor, state_of(shadow)), MessageRefused)
    assert same_bits(actor.module, shadow.module)
    do(actor, forward(10, torch.randn(5, 4)), backward(10, torch.randn(5, 3)))
    assert actor.version == 5


@pytest.mark.parametrize("wrong", [without_learner, of_another_module, not_finite, with_more])
def test_what_does_not_fit_is_refused_and_the_gate_before_is_told_all_the_same(wrong):
    actor = trained(ema=0.5)
    before, average = copy.deepcopy(actor.module.state_dict()), actor.weights.average
    effects = take_over(actor, wrong())
    assert len(reports(effects, MessageRefused)) == len(sends(effects, TakeOver)) == 1
    assert same_bits(actor.module.state_dict(), before)
    assert (actor.version, actor.weights.average) == (3, average)


def test_one_that_is_told_nothing_says_so():
    (refused,) = reports(take_over(trained()), MessageRefused)
    assert "from nobody" in refused.reason


@pytest.mark.parametrize("recipe", [{"staleness": ak.GapAware()}, {"ema": 0.9}], ids=str)
def test_what_the_other_did_not_learn_with_begins_with_the_weights_that_come(recipe):
    """How far weights move usually had the whole way there in it, and an average the weights of before."""
    other, actor = trained(), trained(**recipe)
    take_over(actor, state_of(other))
    begun = (
        actor.weights.average.pin()
        if "ema" in recipe
        else [kept[1] for kept in actor._updater.rule_state.kept]
    )
    assert all(map(torch.equal, begun, actor.weights.now))
