"""A gate that accumulates makes one update of several batches: pipeline/learning/accumulating_gate.py."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, do, reports, same_bits, sends, sgd, small_network
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Backward, Batch, Forward, Refused
from akkordeon.core.recovery.messages import Save
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.pipeline.learning.kinds import gate_actor
from akkordeon.pipeline.stage import Position
from akkordeon.session.recovery.state_check import require_whole


def adamw(params):
    optimizer = torch.optim.AdamW(params, lr=1e-2, fused=True)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)


def plain(model, batches, accumulate, clip_norm=None):
    """The loop everybody writes; where 1/m is no power of two, with the mean taken at the end."""
    model = copy.deepcopy(model)
    made = [adamw(list(part.parameters())) for part in model]
    exact = accumulate & (accumulate - 1) == 0
    for number, (x, y) in enumerate(batches, 1):
        loss = F.cross_entropy(model(x), y)
        (loss / accumulate if exact else loss).backward()
        if number % accumulate == 0:
            for part, (optimizer, scheduler) in zip(model, made, strict=True):
                for parameter in part.parameters():
                    if not exact:
                        parameter.grad /= accumulate
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(part.parameters(), clip_norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return model


def alone(lr, accumulate, **recipe):
    """The middle gate of a row that is not there."""
    gate = ak.Gate(nn.Linear(3, 2, bias=False), lambda params: torch.optim.SGD(params, lr=lr), **recipe)
    position = Position("gate/1", 1, previous="gate/0", next="gate/2")
    return gate_actor(dataclasses.replace(gate, accumulate=accumulate), position)


def trained(network, batches, in_flight=1, **run):
    with ak.run(network, **run) as session:
        attached = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight))
        session.wait(timeout=WAIT_S)
        status = session.status()
        return session.module(), attached, status


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_with_one_batch_in_flight_it_is_plain_accumulation_bit_for_bit(accumulate):
    network, batches = (
        small_network().replacing(optimizer=adamw, accumulate=accumulate, clip_norm=0.3),
        batches_of(26),
    )
    ours, attached, status = trained(network, batches)
    assert same_bits(ours, plain(network.module(), batches, accumulate, clip_norm=0.3))
    assert attached.batches.as_tuple() == (26, 26, 0, 0)
    assert [gate.version for gate in status.gates] == [26 // accumulate] * 3


def test_with_the_rule_latest_and_several_in_flight_weights_change_once_for_so_many():
    network = small_network().replacing(staleness=ak.Latest(), accumulate=4)
    _, attached, status = trained(network, batches_of(40), in_flight=4, engine=ak.Threads(1))
    assert attached.batches.trained == 40
    assert all(gate.version == 10 and max(gate.staleness) <= 1 for gate in status.gates)
    assert all(sum(gate.staleness.values()) == 40 for gate in status.gates)


def test_each_gradient_is_corrected_by_its_own_staleness():
    gates = (alone(1.0, 2), (1.0, 1.0)), (alone(1.0, 2, staleness=ak.InverseStaleness()), (0.5, 1.0))
    one, other = torch.randn(2, 1, 3).unbind()
    for actor, parts in gates:
        before = actor.weights.now[0].detach().clone()
        do(actor, Forward(Batch("s", 0), one))
        for number in range(1, 5):  # two updates meanwhile, that leave the weights as they are
            do(actor, Forward(Batch("s", number), one), Backward(Batch("s", number), torch.zeros(1, 2)))
        do(actor, Forward(Batch("s", 5), other))
        do(actor, Backward(Batch("s", 0), torch.ones(1, 2)), Backward(Batch("s", 5), torch.ones(1, 2)))
        mean = (parts[0] * one + parts[1] * other) / 2
        assert actor.version == 3
        torch.testing.assert_close(actor.weights.now[0].detach(), before - mean.expand(2, 3))


def test_a_bad_batch_is_refused_alone_and_the_others_make_the_update():
    network, batches = small_network().replacing(optimizer=adamw, accumulate=2), batches_of(8)
    spoilt = [*batches[:3], (torch.full((8, 6), torch.nan), batches[0][1]), *batches[3:]]
    ours, attached, _ = trained(network, spoilt)
    assert attached.batches.as_tuple() == (9, 8, 1, 0)
    assert same_bits(ours, plain(network.module(), batches, 2))


def test_an_update_that_would_not_be_finite_refuses_all_of_its_batches():
    gate = alone(1e38, 3)
    before = copy.deepcopy(gate.module.state_dict())
    effects = []
    for number in range(4):
        do(gate, Forward(Batch("s", number), torch.full((1, 3), 1e3)))
        effects.append(do(gate, Backward(Batch("s", number), torch.ones(1, 2))))
    assert [refused.batch.number for refused in sends(effects[2], Refused)] == [0, 1, 2]
    assert not sends(effects[0] + effects[1] + effects[3], Refused)
    assert gate.version == 0
    assert same_bits(gate.module.state_dict(), before)


def test_what_was_gathered_when_a_sentinel_ends_waits_for_the_next_one():
    network, batches = small_network().replacing(optimizer=adamw, accumulate=4), batches_of(12)
    with ak.run(network) as session:
        for part in (batches[:6], batches[6:]):
            session.attach(ak.Sentinel.train(part, F.cross_entropy)).wait(timeout=WAIT_S)
        assert same_bits(session.module(), plain(network.module(), batches, 4))


@pytest.mark.parametrize("gates", [1, 3, 5])
def test_a_checkpoint_has_what_was_gathered_for_the_same_gates_or_others(gates):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4))
    batches = batches_of(22)

    def network(gates):
        return ak.Network.from_module(layers, gates, adamw, accumulate=4)

    def trained_on(part, network, name="first", **resume):
        with ak.run(network, ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, name=name)).wait(timeout=WAIT_S)
            return session.checkpoint(), session.module()

    _, whole = trained_on(batches, network(3))
    kept, _ = trained_on(batches[:6], network(3))
    assert [number for _, number in kept.stages["gate/0"].learner["gathered"]["batches"]] == [4, 5]
    require_whole(kept)
    _, again = trained_on(batches[6:], network(gates), name="second", resume=kept)
    assert same_bits(again, whole)


def test_a_gate_that_accumulates_no_more_has_what_was_gathered_in_its_first_update():
    position = Position("gate/0", 0, snapshot_every=100)
    gate = ak.Gate(nn.Linear(3, 2, bias=False), lambda params: torch.optim.SGD(params, lr=1.0), accumulate=4)
    x = torch.randn(3, 1, 3)

    def step(actor, number):
        batch = Batch("s", number)
        return do(actor, Forward(batch, x[number]), Backward(batch, torch.ones(1, 2)))

    one = gate_actor(gate, position)
    step(one, 0)
    step(one, 1)
    (kept,) = reports(do(one, Save()), StageSaved)
    again = gate_actor(dataclasses.replace(gate, accumulate=1), position, kept.state)
    step(again, 2)
    assert (one.version, again.version) == (0, 1)
    wanted = gate.module.weight.detach() - x.mean(0).expand(2, 3)
    torch.testing.assert_close(again.weights.now[0].detach(), wanted)


def test_a_gate_that_raises_comes_back_with_the_updates_of_its_snapshot():
    steps = iter(range(1000))

    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            if next(steps) == 5:
                raise ValueError("no step")
            return super().step(closure)

    parts = [nn.Linear(6, 5), nn.Linear(5, 4)]
    network = ak.Network(
        [
            ak.Gate(parts[0], sgd, accumulate=3),
            ak.Gate(parts[1], lambda params: Fails(params, lr=0.1), accumulate=3),
        ],
        recovery=ak.Recovery(snapshot_every=1),
    )
    _, attached, status = trained(network, batches_of(30), engine=ak.Threads(1))
    assert attached.batches.as_tuple() == (30, 29, 1, 0)
    assert status.gates[0].version in (9, 10)
    assert sum(status.restarts.values()) == 1


def test_a_record_of_it_is_replayed_to_the_bit(tmp_path):
    def network():
        torch.manual_seed(1)
        return small_network().replacing(accumulate=3)

    sentinel = ak.Sentinel.train(batches_of(10), F.cross_entropy, in_flight=3, name="a")
    with ak.run(network(), record=tmp_path / "record.gz") as session:
        session.attach(sentinel)
        session.wait(timeout=WAIT_S)
        states = session.states()
    replayed = ak.replay(tmp_path / "record.gz", network(), [sentinel])
    assert all(same_bits(states[gate], replayed.states[gate]) for gate in states)


def test_a_replica_refuses_it_and_says_what_there_is_instead():
    with pytest.raises(RecipeError, match=r"gate 0 has accumulate=4, and the gates of replicas step with"):
        ak.Downpour(small_network().replacing(accumulate=4))
    with pytest.raises(RecipeError, match="accumulate is at least 1, got 0"):
        small_network().replacing(accumulate=0)


def test_a_snapshot_has_the_size_of_the_step_that_gradients_are_gathered_for():
    """A quarter of the learning rate: the first gradient is four updates old, the second fresh."""
    gate, again = (alone(0.5, 2, staleness=ak.AnnealedSteps(10)) for _ in range(2))
    gradients = [torch.ones(2, 3)]
    gate._updater.corrected(gradients, gate.weights.now, 4)
    again._updater.load(gate._updater.state())
    again._updater.corrected(gradients, again.weights.now, 0)
    (before,) = again.weights.now
    assert again._updater.apply(gradients)
    assert torch.equal(again.weights.now[0], before - 0.5 / 4)
    assert "lr factor" not in again._updater.state()
