"""Weight prediction: forwards are on the weights expected by the time the gradient comes."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
from tests.support.harness import (
    WAIT_S,
    backward,
    batches_of,
    do,
    forward,
    same_bits,
    sends,
    small_network,
)
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import AkkordeonError, RecipeError
from akkordeon.core.messages import Cut, CutId, Export, Exported
from akkordeon.core.plain_state import StageState
from akkordeon.core.streams.messages import TakeOver
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.delays import Fixed
from akkordeon.pipeline.learning.kinds import gate_actor
from akkordeon.pipeline.stage import Position

LR, MOMENTUM = 0.05, 0.9


def momentum(params):
    return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM)


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-2)


def predicted_by_hand(module, optimizer, batches, delay, factor):
    """ŵ = w + f(s)·(w − w before), with as many gradients waiting as there are updates ahead."""
    model, at = copy.deepcopy(module), copy.deepcopy(module)
    made = optimizer(list(model.parameters()))
    weights = list(model.parameters())
    before, due = None, deque()

    def update():
        nonlocal before
        before = [weight.detach().clone() for weight in weights]
        for weight, gradient in zip(weights, due.popleft(), strict=True):
            weight.grad = gradient
        made.step()

    for x, y in batches:
        if len(due) > delay:
            update()
        for guess, weight, was in zip(at.parameters(), weights, before or weights, strict=True):
            guess.data = weight.detach() + factor(len(due)) * (weight.detach() - was)
            guess.grad = None
        F.cross_entropy(at(x), y).backward()
        due.append([guess.grad for guess in at.parameters()])
    while due:
        update()
    return model


def late(network, batches, delay):
    row = DelayedRow(network, Fixed(delay))
    for x, y in batches:
        row.learn(x, y, F.cross_entropy)
    row.finish()
    return row


@pytest.mark.parametrize(
    ("rule", "factor"),
    [
        (ak.Prediction(), float),
        (ak.Prediction(decay=MOMENTUM), lambda s: sum(MOMENTUM**i for i in range(1, s + 1))),
    ],
)
@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("optimizer", [momentum, adamw])
def test_gradients_are_those_of_the_weights_that_are_expected(optimizer, delay, rule, factor):
    torch.manual_seed(0)
    module, batches = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), batches_of(24)
    row = late(ak.Network([ak.Gate(module, optimizer, rule)]), batches, delay)
    expected = predicted_by_hand(module, optimizer, batches, delay, factor)
    for ours, theirs in zip(row.module().parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    stale = late(ak.Network([ak.Gate(module, optimizer)]), batches, delay)
    assert same_bits(row.module(), stale.module()) is (delay == 0)
    assert row.staleness == stale.staleness


def test_with_momentum_alone_it_is_where_the_momentum_leads():
    """w − η·(γ − γ^(s+1))/(1 − γ)·v: if all gradients to come are 0 the prediction comes true."""
    weight = nn.Parameter(torch.randn(5))
    optimizer = momentum([weight])
    seen = [weight.detach().clone()]
    for gradient in (torch.randn(5), *(torch.zeros(5) for _ in range(6))):
        weight.grad = gradient
        optimizer.step()
        seen.append(weight.detach().clone())
    for ahead in range(1, 7):
        (guess,) = ak.Prediction(decay=MOMENTUM).ahead(
            [seen[1].requires_grad_()], [seen[0].requires_grad_()], ahead
        )
        torch.testing.assert_close(guess, seen[1 + ahead])


def test_with_one_batch_in_flight_it_is_the_plain_loop_to_the_bit():
    network, modules = small_network().replacing(optimizer=adamw), []
    for rule in (ak.Stash(), ak.Prediction()):
        with ak.run(network.replacing(staleness=rule), engine=ak.Threads(2)) as session:
            session.attach(ak.Sentinel.train(batches_of(20), F.cross_entropy, in_flight=1))
            session.wait(timeout=WAIT_S)
            modules.append(session.module())
    assert same_bits(*modules)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_taken_up_goes_on_to_the_bit(accumulate, tmp_path):
    network = small_network().replacing(optimizer=adamw, staleness=ak.Prediction(), accumulate=accumulate)
    batches = batches_of(24)

    def trained(part, resume=None):
        with ak.run(network, engine=ak.Simulator(seed=2), resume=resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=4, name=f"of {len(part)}"))
            session.wait(timeout=WAIT_S)
            return session.checkpoint(tmp_path / f"{len(part)}"), session.module()

    first, _ = trained(batches[:11])
    again = [trained(batches[11:], resume=first)[1] for _ in range(2)]
    assert same_bits(*again)
    if accumulate == 1:  # nothing is in flight between the parts, and the first forward after is on w
        assert first.stages["gate/0"].learner["earlier"]


def test_a_recorded_run_is_replayed_to_the_same_bits(tmp_path):
    network, batches = (
        small_network().replacing(optimizer=momentum, staleness=ak.Prediction()),
        batches_of(30),
    )
    train = ak.Sentinel.train(batches, F.cross_entropy, in_flight=5)
    with ak.run(network, engine=ak.Threads(2), record=tmp_path / "run.record") as session:
        session.attach(train)
        session.wait(timeout=WAIT_S)
        module = session.module()
    assert same_bits(ak.replay(tmp_path / "run.record", network, [train]).module(), module)


class Writes(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(0.999)
        return super().forward(x)


def test_what_does_not_go_together_is_refused_in_a_sentence():
    network = small_network().replacing(staleness=ak.Prediction())
    for change, sentence in (
        (lambda: ak.Prediction(decay=1.0), "at least 0 and below 1, got 1.0"),
        (lambda: ak.Downpour(network, replicas=2), "not known ahead"),
        (lambda: ak.Downpour(small_network(), replicas=2, staleness=ak.Prediction()), "not known ahead"),
        (lambda: ak.Network(network.gates, clip_whole_norm=1.0), "clip_norm each instead"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            change()
    with ak.run(network) as session, pytest.raises(AkkordeonError, match="cannot go from Prediction"):
        session.gate("gate/0").set(staleness=ak.Stash())
    writing = ak.Network([ak.Gate(Writes(6, 4), momentum, ak.Prediction())])
    with ak.run(writing) as session:
        attached = session.attach(ak.Sentinel.train(batches_of(40), F.cross_entropy))
        with pytest.raises(AkkordeonError, match="by its schedule or rule are to stay"):
            attached.wait(timeout=WAIT_S)


@pytest.mark.parametrize("schedule", [ak.Async(), ak.TwoBuffers(1)])
def test_after_it_has_taken_over_from_another_nothing_is_known_of_where_the_weights_go(schedule):
    def made(scale):
        module = nn.Linear(6, 4)
        nn.init.constant_(module.weight, scale)
        position = Position("gate/0", 0, schedule=schedule)
        return gate_actor(ak.Gate(module, momentum, staleness=ak.Prediction()), position)

    def learn(gate, number):
        do(gate, forward(number, torch.randn(2, 6)), backward(number, torch.randn(2, 4)))

    one, other, cut = made(0.0), made(100.0), CutId("a", 0)
    learn(one, 0)
    learn(one, 1)
    (exported,) = sends(do(other, Cut(cut, whole=True), Export(cut)), Exported)
    do(one, TakeOver("s", (StageState(0, exported.state, exported.learner),)))
    do(one, forward(2, torch.randn(2, 6)), forward(3, torch.randn(2, 6)))
    assert all(torch.equal(stashed.weights[0], one.weights.now[0]) for stashed in one.stash.values())
