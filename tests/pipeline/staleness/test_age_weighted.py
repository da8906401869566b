"""Age weights, against sums done by hand: of gates, and of the outer steps of shards."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, do, same_bits, small_network
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.shard_messages import Fetch, Push
from akkordeon.downpour.shard import ParameterShard, ShardActor
from akkordeon.pipeline.stage import Position

SGD = partial(torch.optim.SGD, lr=0.5)
OUTER = partial(torch.optim.SGD, lr=0.7, momentum=0.5, nesterov=True)


def test_a_gradient_is_divided_by_a_power_of_its_age():
    gradient = torch.tensor([3.0, -6.0])
    for power, staleness, expected in ((0.5, 3, [1.5, -3.0]), (1, 2, [1.0, -2.0]), (0, 7, [3.0, -6.0])):
        corrected, none = ak.AgeWeighted(power).correct([gradient, None], [], [], staleness, None)
        assert corrected.tolist() == pytest.approx(expected)
        assert none is None
    assert ak.AgeWeighted().correct([gradient], [], [], 0, None)[0] is gradient


def test_a_shard_makes_smaller_outer_steps_of_older_pushes():
    """Four replicas are lent 0, and push 2 each: with τ = 0, 1, 2, 3 at the rate 0.5."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    shard = ShardActor(ParameterShard(module, SGD, staleness=ak.AgeWeighted()), Position("shard/0", 0))
    for i in range(4):
        do(shard, Fetch(f"r/{i}"))
    expected = 0.0
    for i in range(4):
        do(shard, Push(f"r/{i}", 0, 1, (torch.full((1, 1), 2.0),)))
        expected -= 0.5 * 2 / (1 + i) ** 0.5
        assert shard.weights.now[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("in_flight", [1, 4])
def test_with_one_batch_in_flight_it_is_the_plain_loop_to_the_bit(in_flight):
    network, batches, modules = small_network(), batches_of(20), []
    for rule in (ak.Stash(), ak.AgeWeighted()):
        with ak.run(network.replacing(staleness=rule), engine=ak.Simulator(seed=1)) as session:
            session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight))
            session.wait(timeout=WAIT_S)
            modules.append(session.module())
    assert same_bits(*modules) is (in_flight == 1)


def local_sgd(network, rule, replicas):
    return ak.Downpour(
        network,
        replicas=replicas,
        push="differences",
        push_every=2,
        fetch="wait",
        server_optimizer=OUTER,
        staleness=rule,
    )


def trained(recipe, batches, **kwargs):
    with ak.run(recipe, engine=ak.Simulator(seed=1), **kwargs) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1, name=f"of {len(batches)}"))
        session.wait(timeout=WAIT_S)
        return session.module(), session.checkpoint()


@pytest.mark.parametrize("replicas", [1, 3])
def test_with_one_replica_that_waits_outer_steps_are_whole_to_the_bit(replicas):
    network, batches = small_network(), batches_of(36)
    (whole, _), (weighted, _) = (
        trained(local_sgd(network, rule, replicas), batches) for rule in (ak.Stash(), ak.AgeWeighted())
    )
    assert same_bits(whole, weighted) is (replicas == 1)


def test_a_recorded_run_of_replicas_is_replayed_to_the_same_bits(tmp_path):
    recipe, batches = local_sgd(small_network(), ak.AgeWeighted(), 3), batches_of(36)
    train = ak.Sentinel.train(batches, F.cross_entropy, in_flight=1)
    with ak.run(recipe, engine=ak.Threads(2), record=tmp_path / "run.record") as session:
        session.attach(train)
        session.wait(timeout=WAIT_S)
        module = session.module()
    assert same_bits(ak.replay(tmp_path / "run.record", recipe, [train]).module(), module)


def test_a_run_taken_up_goes_on_to_the_bit():
    recipe, batches = local_sgd(small_network(), ak.AgeWeighted(), 3), batches_of(36)
    _, first = trained(recipe, batches[:18])
    again = [trained(recipe, batches[18:], resume=first)[0] for _ in range(2)]
    assert same_bits(*again)


@pytest.mark.parametrize("power", [-1, "half", float("nan")])
def test_what_is_no_power_is_refused(power):
    with pytest.raises(RecipeError, match="the power of age weights is at least 0, got"):
        ak.AgeWeighted(power)
