"""Where a sentinel does not know what its gates have gathered, it has them settle, and they count alike."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.pipeline.schedules.test_schedules import M, momentum
from tests.support.harness import WAIT_S, batches_of, small_network
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.session.recovery.checkpoint import Checkpoint

IN_FLIGHT = 2 * M
DATA = batches_of(20 * M)
SCHEDULES = {"flush": (ak.Flush(M), 0), "2bw": (ak.TwoBuffers(M), 1)}
by_schedule = pytest.mark.parametrize(("schedule", "delay"), SCHEDULES.values(), ids=SCHEDULES)


def scheduled(schedule):
    return small_network(schedule=schedule).replacing(optimizer=momentum)


def ages(session):
    """How old the gradients were, of each gate."""
    return [dict(gate.staleness) for gate in session.status().gates]


def ages_after(network, checkpoint, name, batches=None):
    """The same, of a sentinel that trains when the network goes on from a checkpoint."""
    with ak.run(network, engine=ak.Threads(2), resume=checkpoint) as session:
        before = ages(session)
        session.attach(ak.Sentinel.train(batches or DATA, F.cross_entropy, in_flight=IN_FLIGHT, name=name))
        session.wait(timeout=WAIT_S)
        after = ages(session)
    return [
        {τ: count - then.get(τ, 0) for τ, count in now.items() if count > then.get(τ, 0)}
        for now, then in zip(after, before, strict=True)
    ]


class Halfway:
    """A loss that waits at its sixth batch, within the second update, until it may go on."""

    def __init__(self):
        self.there, self.go_on, self._calls = threading.Event(), threading.Event(), 0

    def __call__(self, outputs, y):
        self._calls += 1
        if self._calls == M + 2:
            self.there.set()
            assert self.go_on.wait(WAIT_S)
        return F.cross_entropy(outputs, y)


def detached_halfway(network):
    loss = Halfway()
    with ak.run(network, engine=ak.Threads(2)) as session:
        attached = session.attach(ak.Sentinel.train(DATA, loss, in_flight=1, name="tdp"))
        assert loss.there.wait(WAIT_S)
        attached.detach()
        loss.go_on.set()
        attached.wait(timeout=WAIT_S)
        assert attached.batches.trained % M
        return session.checkpoint()


@pytest.mark.parametrize("name", ["tdp", "another"])
@by_schedule
def test_one_that_goes_on_after_a_detach_within_an_update_counts_as_gates_do(schedule, delay, name):
    network = scheduled(schedule)
    checkpoint = detached_halfway(network)
    assert all(set(seen) <= {delay} for seen in ages_after(network, checkpoint, name))


@by_schedule
def test_one_that_goes_on_with_a_schedule_from_a_run_without_counts_as_gates_do(schedule, delay):
    checkpoint = detached_halfway(small_network().replacing(optimizer=momentum))
    for seen in ages_after(scheduled(schedule), checkpoint, "tdp"):
        assert set(seen) == {0, delay}
        assert seen[0] == M if delay else 20 * M


@pytest.mark.parametrize("name", ["tdp", "another"])
@by_schedule
def test_one_that_goes_on_from_within_an_update_counts_as_gates_do(schedule, delay, name):
    network, kept = scheduled(schedule), []
    with ak.run(network, engine=ak.Threads(1)) as session:
        session.subscribe(
            lambda record: kept.append(record) if isinstance(record, Checkpoint) else None, inline=True
        )
        train = ak.Sentinel.train(batches_of(5 * M), F.cross_entropy, in_flight=3, name="tdp")
        session.attach_all([train, ak.Sentinel.checkpoint(every_updates=1)])
        session.wait(timeout=WAIT_S)
    within = [
        each for each in kept if each.stages["gate/0"].learner["gathered"]["batches"] and each.number > 2
    ]
    assert within
    assert all(set(seen) == {delay} for seen in ages_after(network, within[0], name, batches_of(5 * M)))


@by_schedule
def test_a_gate_that_comes_within_an_update_counts_as_the_others_do(schedule, delay):
    loss, network = Halfway(), scheduled(schedule)
    with ak.run(network, engine=ak.Threads(2)) as session:
        attached = session.attach(ak.Sentinel.train(batches_of(30 * M), loss, in_flight=3))
        assert loss.there.wait(WAIT_S)
        timer = threading.Timer(0.2, loss.go_on.set)
        timer.start()
        wide = next(p for p in network.gates[1].module.parameters() if p.ndim == 2).shape[1]
        session.gate("gate/1").insert_before(ak.Gate(nn.Linear(wide, wide), momentum), timeout=WAIT_S)
        attached.wait(timeout=WAIT_S)
        timer.join()
        assert attached.batches.as_tuple() == (30 * M, 30 * M, 0, 0)
        for seen in ages(session):
            assert set(seen) <= {0, delay}
            assert not delay or seen[0] <= 2 * M


class NotFinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, is_bad):
        ctx.is_bad = is_bad
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan if ctx.is_bad else gradient, None


class SixthNotFinite(nn.Module):
    """Its sixth batch has a gradient that is not finite, after the gates behind it have gathered theirs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return NotFinite.apply(self.layer(x), int(self.calls) == M + 2)


@by_schedule
@pytest.mark.parametrize("engine", [lambda: ak.Threads(1), lambda: ak.Threads(2), lambda: ak.Simulator(1)])
def test_a_batch_refused_on_its_way_back_parts_gates_for_one_update_alone(schedule, delay, engine):
    gates = [ak.Gate(SixthNotFinite(), momentum), ak.Gate(nn.Linear(5, 4), momentum)]
    with ak.run(ak.Network(gates, schedule=schedule), engine=engine()) as session:
        attached = session.attach(ak.Sentinel.train(DATA, F.cross_entropy, in_flight=IN_FLIGHT))
        attached.wait(timeout=WAIT_S)
        assert attached.batches.as_tuple() == (20 * M, 20 * M - 1, 1, 0)
        for seen in ages(session):
            others = sum(count for τ, count in seen.items() if τ not in (0, delay))
            assert others <= 2 * M
            assert not delay or seen[0] <= 3 * M
