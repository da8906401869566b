"""A gate that averages its weights: pipeline/learning/average.py."""

from __future__ import annotations

import copy

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
    small_network,
)
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.session.recovery.state_check import require_whole

DECAY = 0.9


def adamw(params):
    return torch.optim.AdamW(params, lr=1e-2, fused=True)


def normed(gates=3, ema=DECAY, seed=0, **settings):
    """6 features to 4 classes, with buffers; all of it trains with AdamW."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7), nn.Linear(7, 4))
    return ak.Network.from_module(layers, gates, adamw, ema=ema, **settings)


def plain(model, batches, decay=DECAY, accumulate=1):
    """The loop everybody writes, and the average of it."""
    model = copy.deepcopy(model).train()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = adamw(model.parameters())
    for number, (x, y) in enumerate(batches, 1):
        (F.cross_entropy(model(x), y) / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            averaged.update_parameters(model)
    return model, averaged.module


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_one_batch_in_flight_it_is_that_of_averaged_model_bit_for_bit(accumulate):
    network, batches = normed(accumulate=accumulate), batches_of(12)
    model, averaged = plain(network.module(), batches, accumulate=accumulate)
    with ak.run(network) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy)).wait(timeout=WAIT_S)
        assert same_bits(session.module(), model)
        assert same_bits(session.module(ema=True), averaged)
        assert not same_bits(model, averaged)
    assert same_bits(session.module(), model)
    assert same_bits(session.module(ema=True), averaged)


def test_a_model_that_was_cut_by_an_example_has_its_average_under_its_own_names():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(x + self.two(self.one(x).relu()))

    model, batches = Skips(), batches_of(6)
    network = ak.Network.from_module(model, 2, adamw, example=batches[0][0], ema=DECAY)
    with ak.run(network) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy)).wait(timeout=WAIT_S)
        assert same_bits(session.module(ema=True), plain(model, batches)[1])


def test_validators_tests_and_predictions_may_ask_for_the_average():
    network, batches = normed(), batches_of(8)
    x, y = batches[0]
    model, averaged = (each.eval() for each in plain(network.module(), batches))
    losses = []
    with ak.run(network) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy))
        validators = [
            session.attach(
                ak.Sentinel.validate([(x, y)], F.cross_entropy, every_updates=100, best=ak.Best(), ema=ema)
            )
            for ema in (False, True)
        ]
        session.wait(timeout=WAIT_S)
        losses = [each.rounds[-1].loss for each in validators]
        tested = session.attach(ak.Sentinel.test([(x, y)], F.cross_entropy, ema=True)).wait(WAIT_S)
        predicted = session.attach(ak.Sentinel.predict(x, ema=True)).wait(WAIT_S).result
        best = session.best_module("validate-2")
    with torch.no_grad():
        assert losses == [F.cross_entropy(each(x), y).item() for each in (model, averaged)]
        assert tested.rounds[-1].loss == losses[1]
        assert torch.equal(predicted, averaged(x))
    assert same_bits(best, averaged)


@pytest.mark.parametrize("gates", [1, 3, 5])
def test_a_checkpoint_has_it_for_the_same_gates_or_others(gates):
    batches = batches_of(12)

    def trained_on(part, gates, name, **resume):
        with ak.run(normed(gates), ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, name=name)).wait(timeout=WAIT_S)
            return session.checkpoint(), session.module(ema=True)

    _, whole = trained_on(batches, 3, "first")
    kept, _ = trained_on(batches[:5], 3, "first")
    require_whole(kept)
    _, again = trained_on(batches[5:], gates, "second", resume=kept)
    assert same_bits(again, whole)


def test_an_update_that_is_taken_back_or_refused_leaves_it_alone():
    gate = gate_alone(nn.Linear(3, 2, bias=False), lambda params: torch.optim.SGD(params, lr=1e38), ema=DECAY)
    before = gate.weights.pin(averaged=True)[0].detach().clone()
    do(gate, forward(0, torch.full((1, 3), 1e3)), backward(0, torch.ones(1, 2)))
    do(gate, forward(1, torch.ones(1, 3)), backward(1, torch.full((1, 2), torch.nan)))
    assert gate.version == 0
    assert torch.equal(gate.weights.pin(averaged=True)[0], before)


def test_who_holds_an_average_has_it_whatever_comes_after():
    gate = gate_alone(nn.Linear(3, 2, bias=False), adamw, ema=DECAY)
    held = gate.weights.pin(averaged=True)[0]
    before = held.detach().clone()
    do(gate, forward(0, torch.ones(1, 3)), backward(0, torch.ones(1, 2)))
    assert torch.equal(held, before)
    assert not torch.equal(gate.weights.pin(averaged=True)[0], before)


def test_a_gate_that_raises_comes_back_with_the_average_of_its_snapshot():
    steps = iter(range(1000))

    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if next(steps) == 5:
                raise ValueError("no step")
            return super().step(closure)

    gate = ak.Gate(nn.Linear(6, 4), lambda params: Fails(params, lr=0.1), ema=DECAY)
    network = ak.Network([gate], recovery=ak.Recovery(snapshot_every=1))
    batches = batches_of(12)
    with ak.run(network, ak.Threads(1)) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy)).wait(timeout=WAIT_S)
        found = session.module(ema=True)
    steps = iter([0] * 1000)
    with ak.run(network, ak.Threads(1)) as session:
        learned = batches[:5] + batches[6:]
        session.attach(ak.Sentinel.train(learned, F.cross_entropy)).wait(timeout=WAIT_S)
        assert same_bits(session.module(ema=True), found)


def test_with_replicas_the_shards_average_what_they_hold():
    network, batches = normed(ema=DECAY), batches_of(10)
    downpour = ak.Downpour(network, replicas=1, fetch="wait", server_optimizer=adamw)
    with ak.run(downpour) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy)).wait(timeout=WAIT_S)
        assert same_bits(session.module(ema=True), plain(network.module(), batches)[1])


def test_a_position_on_several_shards_refuses_it():
    with pytest.raises(RecipeError, match="a position on several shards keeps no average"):
        ak.Downpour(normed(), max_shard_bytes=64)


@pytest.mark.parametrize("ema", [-0.1, 1, "0.9", float("nan")])
def test_a_decay_out_of_range_is_refused(ema):
    with pytest.raises(RecipeError, match="ema is at least 0 and below 1, as in"):
        ak.Gate(nn.Linear(2, 2), adamw, ema=ema)


def test_where_nobody_keeps_one_whoever_asks_for_it_is_told_how():
    with ak.run(small_network()) as session:
        for ask in (
            lambda: session.module(ema=True),
            lambda: session.attach(ak.Sentinel.validate(batches_of(1), F.cross_entropy, ema=True)),
        ):
            with pytest.raises(RecipeError, match="no gate that learns keeps one; give gates ema="):
                ask()
    with pytest.raises(RecipeError, match="no gate that learns keeps one"):
        session.module(ema=True)
