"""A sentinel that was killed goes on at its exact position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.harness import do
from torch import nn

import akkordeon as ak
from akkordeon.core.actor import Report
from akkordeon.core.messages import Backward, Batch, Forward
from akkordeon.core.plain_state import Applied
from akkordeon.core.recovery.messages import SentinelLost
from akkordeon.core.recovery.reports import Learned
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.distributions import Uniform
from akkordeon.engines.simulator.faults import Crash
from akkordeon.engines.simulator.links import Link
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.stage import Position

SAMPLES = 11


class Counts(nn.Module):
    """Hands on what comes, one-hot rows of samples, and counts in its weights how often each was learned."""

    def __init__(self):
        super().__init__()
        self.times = nn.Parameter(torch.zeros(SAMPLES))

    def forward(self, x):
        counted = x.detach() * self.times
        return x + counted - counted.detach()


def network(gates, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), **settings):
    return ak.Network([ak.Gate(Counts(), optimizer) for _ in range(gates)], **settings)


def batches(size, shuffle=True):
    return ak.Batches(torch.eye(SAMPLES), torch.arange(SAMPLES), size, shuffle=shuffle, seed=4)


def simulator(kills_s, seed=0, slowest_s=0.0):
    return ak.Simulator(
        seed,
        links=Link(Uniform(0.0, slowest_s)),
        compute=Compute({"*gate/*": Cost(forward_s=0.01, backward_s=0.01), "*": Cost(message_s=0.001)}),
        faults=[Crash(who="sentinel/a*", at_s=at_s) for at_s in kills_s],
    )


def total(outputs, y):
    return outputs.sum()


def until_done(trainer):
    """Wait, and have it go on as often as it is killed."""
    while True:
        try:
            return trainer.wait(1000)
        except ak.errors.SentinelFailedError:
            counts = trainer._batches
            assert counts.in_flight == 0
            assert counts.lost <= trainer.recipe.in_flight
            trainer.restart()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_gate_has_learned_from_every_sample_once_an_epoch_whenever_its_sentinel_was_killed(data):
    gates, in_flight, size = (data.draw(st.integers(1, most)) for most in (3, 5, 3))
    epochs, every = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([None, 1, 4, 0.1]))
    kills_s = data.draw(st.lists(st.floats(0, 1.5), min_size=1, max_size=4))
    engine = simulator(kills_s, data.draw(st.integers(0, 9)), data.draw(st.sampled_from([0.0, 0.02])))
    with ak.run(network(gates), engine) as session:
        trainer = session.attach(
            ak.Sentinel.train(
                batches(size), total, epochs=epochs, in_flight=in_flight, report_every=every, name="a"
            )
        )
        until_done(trainer)
        assert [gate.stashed for gate in session.status().gates] == [0] * gates
        assert session.status().batches == trainer.batches
        states = session.states(1000)
    sent = epochs * -(-SAMPLES // size)
    assert trainer.batches.as_tuple() == (sent, sent, 0, 0)
    assert trainer.epochs_done == epochs
    for state in states.values():
        assert state["times"].tolist() == [-epochs] * SAMPLES


def test_one_that_is_killed_again_before_it_has_told_anything_goes_on_where_it_was_to_begin():
    """What it had told in its life before was taken for it: four samples were learned from twice."""
    with ak.run(network(1), simulator([0.09375, 0.103515625])) as session:
        trainer = session.attach(
            ak.Sentinel.train(batches(1), total, in_flight=2, report_every=None, name="a")
        )
        until_done(trainer)
        (state,) = session.states(1000).values()
    assert state["times"].tolist() == [-1] * SAMPLES


@pytest.mark.parametrize("at_s", [0.03, 0.1, 0.2, 0.311])
def test_with_one_in_flight_it_has_the_bits_of_a_run_in_which_nobody_was_killed(at_s):
    def trained(kills_s):
        torch.manual_seed(0)
        gates = [
            ak.Gate(module, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
            for module in (nn.Linear(SAMPLES, 7), nn.Linear(7, SAMPLES))
        ]
        with ak.run(ak.Network(gates), simulator(kills_s)) as session:
            trainer = session.attach(ak.Sentinel.train(batches(2), nn.CrossEntropyLoss(), epochs=3, name="a"))
            until_done(trainer)
            return session.states(1000)

    killed, undisturbed = trained([at_s]), trained([])
    for gate, state in undisturbed.items():
        assert all(torch.equal(tensor, killed[gate][name]) for name, tensor in state.items())


def test_a_validator_that_was_killed_makes_the_round_again_and_a_last_one():
    costs = Compute({"*": Cost(forward_s=0.01, backward_s=0.01, evaluate_s=0.01)})
    faults = [Crash(who="sentinel/v*", at_s=0.45)]
    with ak.run(network(2), ak.Simulator(compute=costs, faults=faults)) as session:
        validator = session.attach(ak.Sentinel.validate(batches(2), total, every_updates=4, name="v"))
        session.attach(ak.Sentinel.train(batches(1), total, epochs=2, name="t")).wait(1000)
        assert "is lost" in str(validator.error)
        done = validator.rounds_done
        validator.restart()
        session.wait(1000)
    assert [each.round for each in validator.rounds] == list(range(1, validator.rounds_done + 1))
    assert validator.rounds_done > done > 0
    assert validator.rounds[-1].version == 2 * SAMPLES


def test_a_gate_says_what_it_has_learned_of_a_lost_sentinel_as_often_as_it_is_asked_and_takes_no_more():
    gate = GateActor(ak.Gate(Counts(), lambda p: torch.optim.SGD(p, lr=1.0)), Position("gate/0", 0))
    one, two = Batch("s", 0), Batch("s", 1)
    do(gate, Forward(one, torch.eye(SAMPLES)), Forward(two, torch.eye(SAMPLES)))
    do(gate, Backward(two, torch.ones(SAMPLES, SAMPLES)))
    learned = [Report(Learned("s", Applied(2, frozenset({0}))))]
    assert do(gate, SentinelLost("s")) == learned
    assert do(gate, SentinelLost("s")) == learned
    assert not do(gate, Backward(one, torch.ones(SAMPLES, SAMPLES)))
    assert not gate.stash


def test_batches_are_the_same_under_the_numbers_of_who_reads_them_again():
    applied = Applied(8, frozenset({2, 6}))  # learned from: 0 1 3 4 5 7
    again = applied.renumbered((3, 2), 5)  # reads 3 2, then 5 6 7 …, as 5 6 7 8 9 …
    assert [n for n in range(5, 12) if n in again] == [5, 7, 9]
    assert again.count(5) == 3
    both = again.union(Applied(7, frozenset({5})))
    assert [n for n in range(5, 12) if n in both] == [5, 6, 7, 9]
    assert Applied.from_plain(both.as_plain()) == both
