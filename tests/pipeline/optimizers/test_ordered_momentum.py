"""Ordered momentum: whenever gradients come, it is as if they had come in order."""

from __future__ import annotations

import copy
import math
import random
from functools import partial

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, do, same_bits, small_network
from tests.support.runs import is_replayed_to_the_bit, is_taken_up_to_the_bit
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.shard_messages import Fetch, Push
from akkordeon.downpour.shard import ParameterShard, ShardActor
from akkordeon.experiments.presets import server_optimizer_named
from akkordeon.pipeline.stage import Position
from akkordeon.pipeline.updater import Updater
from akkordeon.pipeline.weights import Weights

LR, BETA = 0.5, 0.8


def applied(optimizer, weight, gradient, staleness):
    weight.grad = torch.full_like(weight, gradient)
    optimizer.staleness = staleness
    optimizer.step()
    return weight.item()


def made(workers, lr=LR, momentum=BETA):
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    return weight, ak.OrderedMomentum([weight], lr=lr, momentum=momentum, workers=workers)


def test_four_gradients_of_two_workers_by_hand():
    """K = 2: updates 0 | 1 2 | 3 are of buckets 0, 1, 1, 2; the last two gradients are one and two late."""
    weight, optimizer = made(workers=2)
    w, u = -LR * 4, 4.0  # of update 0, in time
    assert applied(optimizer, weight, 4.0, 0) == pytest.approx(w)
    u = BETA * u  # bucket 1 begins: what is in the momentum moves the weights
    w -= LR * u
    u, w = u + 2.0, w - LR * 2.0  # of update 1, in time
    assert applied(optimizer, weight, 2.0, 0) == pytest.approx(w)
    u, w = u + BETA * 1.0, w - LR * (1 + BETA) * 1.0  # of update 0: bucket 0 in bucket 1
    assert applied(optimizer, weight, 1.0, 2) == pytest.approx(w)
    u = BETA * u  # bucket 2 begins
    w -= LR * u
    u, w = u + BETA**2 * 3.0, w - LR * (1 + BETA + BETA**2) * 3.0  # of update 0: bucket 0 in bucket 2
    assert applied(optimizer, weight, 3.0, 3) == pytest.approx(w)
    assert optimizer.state[weight]["momentum"].item() == pytest.approx(u)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_in_whatever_order_they_come_it_is_momentum_over_the_buckets_in_order(workers, seed):
    rng = random.Random(seed)
    weight, optimizer = made(workers)
    holds, sums = [0] * workers, {}
    for update in range(60):
        who = rng.randrange(workers)
        gradient, of = rng.uniform(-1, 1), holds[who]
        applied(optimizer, weight, gradient, update - of)
        sums[math.ceil(of / workers)] = sums.get(math.ceil(of / workers), 0.0) + gradient
        holds[who] = update + 1
    w, u = 0.0, 0.0
    for bucket in range(math.ceil(59 / workers) + 1):
        u = BETA * u + sums.get(bucket, 0.0)
        w -= LR * u
    assert weight.item() == pytest.approx(w)
    assert optimizer.state[weight]["momentum"].item() == pytest.approx(u)


def momentum(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def ordered(params, workers=1):
    return ak.OrderedMomentum(params, lr=0.05, momentum=0.9, workers=workers)


@pytest.mark.parametrize("in_flight", [1, 4])
def test_with_one_batch_in_flight_it_is_sgd_with_momentum_to_the_bit(in_flight):
    network, batches, modules = small_network(), batches_of(20), []
    for optimizer in (momentum, ordered):
        with ak.run(network.replacing(optimizer=optimizer), engine=ak.Simulator(seed=1)) as session:
            session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight))
            session.wait(timeout=WAIT_S)
            modules.append(session.module())
    assert same_bits(*modules) is (in_flight == 1)


def test_a_shard_tells_it_how_late_a_push_is():
    """Three replicas are lent 0 and push 1 each, τ = 0, 1, 2: with K = 1 that many buckets late."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = partial(ak.OrderedMomentum, lr=LR, momentum=BETA)
    shard = ShardActor(ParameterShard(module, optimizer), Position("shard/0", 0))
    for i in range(3):
        do(shard, Fetch(f"r/{i}"))
    for i in range(3):
        do(shard, Push(f"r/{i}", 0, 1, (torch.ones(1, 1),)))
    expected = -LR * 3 * (1 + BETA + BETA**2)  # all of bucket 0, by the end of bucket 2
    assert shard.weights.now[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("taken_up", [False, True])
def test_of_several_gradients_the_latest_counts_and_a_checkpoint_has_it(taken_up):
    def learner():
        module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(module.weight)
        weights, rate = Weights(module), partial(ak.OrderedMomentum, lr=LR, momentum=BETA)
        return weights, Updater(weights, rate, ak.Stash(), None, "gate/0")

    weights, updater = learner()
    updater.corrected([torch.ones(1, 1)], weights.now, 3)
    if taken_up:
        state = updater.state()
        weights, updater = learner()
        updater.load(state)
    updater.corrected([torch.ones(1, 1)], weights.now, 1)
    updater.apply([torch.ones(1, 1)])
    assert weights.now[0].item() == pytest.approx(-LR * (1 + BETA + BETA**2 + BETA**3))
    before = weights.now[0].item()
    updater.update([torch.zeros(1, 1)], weights.now, 0)  # the three late are forgotten with their update
    assert weights.now[0].item() == pytest.approx(before - LR * BETA**4)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_taken_up_goes_on_to_the_bit(accumulate):
    network = small_network().replacing(optimizer=partial(ordered, workers=4), accumulate=accumulate)
    batches = batches_of(40)
    assert is_taken_up_to_the_bit(network, batches, at=19, in_flight=8)


@pytest.mark.parametrize("engine", [lambda: ak.Threads(2), lambda: ak.Simulator(seed=3)])
def test_a_recorded_run_of_replicas_is_replayed_to_the_same_bits(engine, tmp_path):
    server = server_optimizer_named("ormo", 0.02, 3)
    recipe = ak.Downpour(small_network(), replicas=3, server_optimizer=server, fetch="wait", local_step=False)
    train = ak.Sentinel.train(batches_of(36), F.cross_entropy, in_flight=1)
    assert is_replayed_to_the_bit(recipe, [train], engine(), tmp_path / "run.record")


def test_a_name_has_as_many_workers_as_there_are_replicas():
    weight = nn.Parameter(torch.zeros(1))
    assert server_optimizer_named("ormo", None, 7)([weight]).param_groups[0]["workers"] == 7


def test_it_can_be_copied_and_loaded():
    weight, optimizer = made(workers=2)
    for i in range(5):
        applied(optimizer, weight, 1.0 + i, i)
    weight_too, other = made(workers=2)
    with torch.no_grad():
        weight_too.copy_(weight)
    other.load_state_dict(copy.deepcopy(optimizer).state_dict())
    assert applied(other, weight_too, 2.0, 3) == applied(optimizer, weight, 2.0, 3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"workers": 0}, "at least 1; got 0"),
        ({"workers": 2.5}, "at least 1; got 2.5"),
    ],
)
def test_what_it_cannot_work_with_is_refused_in_a_sentence(settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        ak.OrderedMomentum([nn.Parameter(torch.zeros(1))], **settings)


def test_error_feedback_around_it_is_refused_with_the_reason():
    with pytest.raises(RecipeError, match="would make up for it twice"):
        ak.ErrorFeedback(made(workers=1)[1])
