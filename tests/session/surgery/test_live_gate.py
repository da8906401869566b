"""Gates learn with other settings while they are at work, and no batch is lost by it."""

from __future__ import annotations

import itertools
import threading
from functools import partial

import pytest
import torch
from tests.support.engines import ENGINES
from tests.support.harness import WAIT_S, batches_of, same_bits, sgd, small_network
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError, ReplayError
from akkordeon.core.surgery.reports import Changed
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash


def adam(params):
    return torch.optim.Adam(params, lr=0.01)


def data(n=40):
    torch.manual_seed(1)
    return [(x, x[:, :4].argmax(1)) for x, _ in batches_of(n)]


def training(**kwargs):
    return ak.Sentinel.train(data(), F.cross_entropy, in_flight=4, name="a", **kwargs)


def network(**kwargs):
    torch.manual_seed(0)
    return small_network(**kwargs)


def change_all(session):
    session.gate("gate/0").set(frozen=True)
    session.gate("gate/1").set(lr=0.01, momentum=0.5)
    session.gate("gate/2").set(optimizer=adam, staleness=ak.InverseStaleness(), betas=(0.8, 0.9))
    session.gate("gate/0").set(frozen=False, reset_optimizer=True)


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_with_changes_loses_no_batch_and_replays_to_the_bit(name, tmp_path):
    with ak.run(network(), engine=ENGINES[name](), record=tmp_path / "r") as session:
        attached = session.attach(training(epochs=4))
        change_all(session)
        attached.wait(WAIT_S)
    assert attached.batches.as_tuple() == (160, 160, 0, 0)
    replayed = ak.replay(tmp_path / "r", network(), [training(epochs=4)], given=[adam, ak.InverseStaleness()])
    assert all(same_bits(replayed.states[gate], session.states()[gate]) for gate in replayed.states)
    with pytest.raises(ReplayError, match="optimizer of gate/2 came while it ran"):
        ak.replay(tmp_path / "r", network(), [training(epochs=4)])


def test_a_gate_that_is_frozen_passes_gradients_through_and_stays_as_it_is():
    net = network()
    with ak.run(net, engine=ak.Simulator()) as session:
        session.gate("gate/1").set(frozen=True)
        session.attach(training(epochs=2)).wait(WAIT_S)
        states = session.states()
    assert same_bits(states["gate/1"], dict(net.gates[1].module.state_dict()))
    assert not same_bits(states["gate/0"], dict(net.gates[0].module.state_dict()))


def test_the_recipe_is_as_it_has_become_and_watchers_hear_of_it():
    heard = []
    with ak.run(network(), engine=ak.Simulator()) as session:
        session.subscribe(lambda record: heard.append(record), inline=True)
        session.gate("gate/2").set(optimizer=adam, lr=0.5)
    assert [gate.optimizer for gate in session.network.gates] == [sgd, sgd, adam]
    assert [(each.address, each.settings["lr"]) for each in heard if isinstance(each, Changed)] == [
        ("gate/2", 0.5)
    ]


def test_what_is_refused_is_said_where_it_was_asked_for():
    def broken(params):
        raise KeyError("nothing")

    gates = [ak.Gate(nn.Linear(6, 4), sgd, name="head")]
    with ak.run(ak.Network(gates), engine=ak.Simulator()) as session:
        with pytest.raises(RecipeError, match="no setting 'speed'"):
            session.gate("head").set(speed=1)
        with pytest.raises(RecipeError, match="optimizer is a function"):
            session.gate("gate/0").set(optimizer=0.1)
        with pytest.raises(RecipeError, match="optimizer function of head failed: KeyError"):
            session.gate("gate/0").set(optimizer=broken)
        with pytest.raises(RecipeError, match=r"none is called .tail.; the gates are gate/0"):
            session.gate("tail")
        assert session.network.gates[0].optimizer is sgd


def test_gates_of_replicas_are_refused_in_a_sentence():
    downpour = ak.Downpour(network(), replicas=2)
    with (
        ak.run(downpour, engine=ak.Simulator()) as session,
        pytest.raises(RecipeError, match="gates of replicas"),
    ):
        session.gate("replica/0/gate/0")


def test_a_gate_that_is_made_anew_learns_with_what_it_was_set_to():
    crash = Crash(who="gate/1", at_s=0.3, back_after_s=0.5)
    simulator = ak.Simulator(compute=Compute({"gate/*": Cost(0.01)}), faults=[crash])
    with ak.run(network(recovery=ak.Recovery(snapshot_every=1000)), engine=simulator) as session:
        session.gate("gate/1").set(optimizer=adam, lr=0.3)
        session.attach(training(epochs=3)).wait(WAIT_S)
        assert session.status().restarts == {"gate/1": 1}
        stage = session.checkpoint().stages["gate/1"]
    assert stage.learner["kinds"]["optimizer"] == "Adam"
    assert stage.learner["optimizer"]["groups"][0]["lr"] == 0.3


class Late(ak.Threads):
    """Makes gates anew a little later, as engines do to which that takes a process."""

    def __init__(self, workers):
        super().__init__(workers)
        self.is_asked = threading.Event()

    def meanwhile(self, do, then):
        self.is_asked.set()
        self.after(0.1, partial(super().meanwhile, do, then))


class FailsOnce(torch.optim.SGD):
    """Raises in its third step, counted over all there are."""

    steps = itertools.count(1)

    def step(self, closure=None):
        if next(self.steps) == 3:
            raise OSError("boom")
        super().step(closure)


# A gate counted as made anew before it was: what it was told then was lost, and set() waited for ever.
def test_a_gate_that_is_away_is_told_of_its_settings_when_it_is_back():
    engine, recovery = Late(2), ak.Recovery(backoff_s=0.0)
    failing = ak.Gate(nn.Linear(6, 4), partial(FailsOnce, lr=0.1))
    with ak.run(ak.Network([failing], recovery=recovery), engine=engine) as session:
        session.attach(training())
        assert engine.is_asked.wait(WAIT_S)
        session.gate("gate/0").set(lr=0.3, timeout=WAIT_S)
        session.wait(WAIT_S)
        assert session.status().restarts == {"gate/0": 1}
        assert session.checkpoint().stages["gate/0"].learner["optimizer"]["groups"][0]["lr"] == 0.3


def test_a_run_that_is_taken_up_has_the_settings_it_had():
    with ak.run(network(), engine=ak.Simulator()) as session:
        session.attach(training(epochs=1)).wait(WAIT_S)
        session.gate("gate/0").set(frozen=True)
        session.gate("gate/1").set(lr=0.5)
        session.gate("gate/2").set(optimizer=adam)
        kept = session.checkpoint()
    with ak.run(session.network, engine=ak.Simulator(), resume=kept) as again:
        taken = again.checkpoint()
    for gate, stage in kept.stages.items():
        ours, its = stage.learner, taken.stages[gate].learner
        assert ours["optimizer"]["groups"] == its["optimizer"]["groups"]
        assert ours.get("frozen") == its.get("frozen")
    assert kept.stages["gate/0"].learner["frozen"]
    with pytest.raises(RecipeError, match="learned with the optimizer Adam"):
        ak.run(network(), engine=ak.Simulator(), resume=kept)
