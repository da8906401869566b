"""Vertical sync: a batch is computed on one version of the whole row, at all gates."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, do, same_bits, sends, small_network
from tests.support.runs import is_replayed_to_the_bit, is_taken_up_to_the_bit
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import AkkordeonError, RecipeError
from akkordeon.core.messages import Backward, Batch, Forward
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.delays import Fixed, PerStage
from akkordeon.pipeline.schedules.vertical_gate import NOTHING_YET, VerticalGate
from akkordeon.pipeline.stage import Position


def momentum(params):
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def fast(params):
    return torch.optim.SGD(params, lr=10.0)


def late(network, batches, delays):
    row = DelayedRow(network, delays)
    for x, y in batches:
        row.learn(x, y, F.cross_entropy)
    row.finish()
    return row


def by_hand(network, batches, delay):
    """The whole row as one module: each gradient is of the version ``delay`` updates before."""
    model = network.module()
    optimizer = momentum(list(model.parameters()))
    due = []

    def update():
        for weight, gradient in zip(model.parameters(), due.pop(0), strict=True):
            weight.grad = gradient
        optimizer.step()

    for x, y in batches:
        if len(due) > delay:
            update()
        at = copy.deepcopy(model)
        at.zero_grad()
        F.cross_entropy(at(x), y).backward()
        due.append([weight.grad for weight in at.parameters()])
    while due:
        update()
    return model


@pytest.mark.parametrize("delay", [0, 1, 2, 5])
def test_a_row_whose_gates_wait_less_further_down_is_one_module_as_late_as_its_head(delay):
    network, batches = small_network().replacing(optimizer=momentum), batches_of(30)
    row = late(network.replacing(staleness=ak.VerticalSync()), batches, PerStage(delay))
    assert same_bits(row.module(), by_hand(network, batches, delay))
    head, *others = row.staleness.values()
    assert all(other == head for other in others)
    stashed = late(network, batches, PerStage(delay))
    assert same_bits(stashed.module(), row.module()) is (delay == 0)


def test_where_all_gates_wait_alike_it_is_the_stash_to_the_bit():
    network, batches = small_network(), batches_of(30)
    rows = (
        late(network.replacing(staleness=rule), batches, Fixed(3)) for rule in (ak.Stash(), ak.VerticalSync())
    )
    assert same_bits(*(row.module() for row in rows))


def test_with_one_batch_in_flight_it_is_the_plain_loop_to_the_bit():
    network, batches, modules = small_network(), batches_of(20), []
    for rule in (ak.Stash(), ak.VerticalSync()):
        with ak.run(network.replacing(staleness=rule), engine=ak.Threads(2)) as session:
            session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1))
            session.wait(timeout=WAIT_S)
            modules.append(session.module())
    assert same_bits(*modules)


@pytest.mark.parametrize("engine", [lambda: ak.Threads(2), lambda: ak.Simulator(seed=4)])
def test_gates_at_work_have_one_staleness_for_each_batch_whoever_trains(engine):
    network = small_network().replacing(staleness=ak.VerticalSync())
    with ak.run(network, engine=engine()) as session:
        for name in ("one", "other"):
            session.attach(ak.Sentinel.train(batches_of(40), F.cross_entropy, in_flight=4, name=name))
        session.wait(timeout=WAIT_S)
        head, *others = [dict(gate.staleness) for gate in session.status().gates]
    assert max(head) > 1
    assert others == [head, head]


def vertical_gate(**position) -> VerticalGate:
    """A gate in the middle of a row."""
    where = {"address": "gate/1", "index": 1, "previous": "gate/0", "next": "gate/2"} | position
    return VerticalGate(ak.Gate(nn.Linear(6, 4), fast, ak.VerticalSync()), Position(**where))


def forward_to(gate, number, *after, sentinel="s"):
    """What a gate passes on of a batch, which is to be computed on a version."""
    message = Forward(Batch(sentinel, number), torch.ones(1, 6), after=after)
    (passed,) = sends(do(gate, message), Forward)
    return passed


def learned(gate, number, gradient=1.0, sentinel="s"):
    do(gate, Backward(Batch(sentinel, number), torch.full((1, 4), gradient)))


def test_a_gate_that_refused_an_update_still_has_the_version_that_is_meant():
    """Its own numbers are one behind then, but versions go by batches."""
    gate = vertical_gate()
    for number in range(3):
        forward_to(gate, number, NOTHING_YET)
    learned(gate, 0)
    before = forward_to(gate, 3, Batch("s", 0), NOTHING_YET).payload
    learned(gate, 1, gradient=3e38)  # its update would not be finite
    learned(gate, 2)
    assert gate.version == 2
    assert torch.equal(forward_to(gate, 4, Batch("s", 0), NOTHING_YET).payload, before)
    assert torch.equal(forward_to(gate, 5, Batch("s", 1), NOTHING_YET).payload, before)
    assert not torch.equal(forward_to(gate, 6, Batch("s", 2), NOTHING_YET).payload, before)


def test_a_batch_may_overtake_another_and_its_version_stays():
    gate = vertical_gate()
    first = forward_to(gate, 0, NOTHING_YET).payload
    learned(gate, 0)
    second = forward_to(gate, 2, Batch("s", 0), NOTHING_YET).payload
    assert torch.equal(forward_to(gate, 1, NOTHING_YET, NOTHING_YET).payload, first)
    assert not torch.equal(first, second)
    forward_to(gate, 3, Batch("s", 0), Batch("s", 0))
    assert torch.equal(
        forward_to(gate, 4, NOTHING_YET).payload, second
    )  # it is gone, and the latest is taken


def test_the_first_gate_says_which_version_and_which_is_the_oldest_needed():
    gate = vertical_gate(previous=None, address="gate/0", index=0)
    said = [forward_to(gate, number).after for number in range(2)]
    learned(gate, 0)
    said.append(forward_to(gate, 0, sentinel="other").after)
    said.append(forward_to(gate, 2).after)
    said.append(forward_to(gate, 1, sentinel="other").after)
    learned(gate, 1)
    said.append(forward_to(gate, 3).after)
    learned(gate, 0, sentinel="other")
    said.append(forward_to(gate, 4).after)
    one, two, others = Batch("s", 0), Batch("s", 1), Batch("other", 0)
    start = NOTHING_YET
    assert said[:2] == [(start, start)] * 2
    assert said[2:] == [(one, start), (one, one), (one, start), (two, one), (others, one)]


def test_versions_are_kept_for_batches_that_may_come_and_no_longer():
    row = DelayedRow(small_network().replacing(staleness=ak.VerticalSync()), PerStage(6))
    for x, y in batches_of(40):
        row.learn(x, y, F.cross_entropy)
        assert max(len(gate._versions) for gate in row._gates.values()) <= 8


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_taken_up_goes_on_to_the_bit(accumulate):
    network = small_network().replacing(staleness=ak.VerticalSync(), accumulate=accumulate)
    batches = batches_of(24)
    assert is_taken_up_to_the_bit(network, batches, at=11, in_flight=4)


@pytest.mark.parametrize("engine", [lambda: ak.Threads(2), lambda: ak.Simulator(seed=3)])
def test_a_recorded_run_is_replayed_to_the_same_bits(engine, tmp_path):
    network, batches = small_network().replacing(staleness=ak.VerticalSync()), batches_of(30)
    train = ak.Sentinel.train(batches, F.cross_entropy, in_flight=5)
    assert is_replayed_to_the_bit(network, [train], engine(), tmp_path / "run.record")


def test_what_does_not_go_together_is_refused_in_a_sentence():
    network = small_network().replacing(staleness=ak.VerticalSync())
    for change, sentence in (
        (lambda: ak.Downpour(network, replicas=2), "lent its own in its own time"),
        (lambda: ak.Downpour(small_network(), replicas=2, staleness=ak.VerticalSync()), "in its own time"),
        (lambda: ak.Network(network.gates, schedule=ak.TwoBuffers(2)), "leave one of them out"),
        (lambda: ak.Network(network.gates, clip_whole_norm=1.0), "clip_norm each instead"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            change()
    with ak.run(network) as session, pytest.raises(AkkordeonError, match="one version for a whole row"):
        session.gate("gate/0").set(staleness=ak.Stash())
