"""Exact schedules: `Flush` is plain accumulation, and with `TwoBuffers` every gradient is one update old.

That of `Prediction` is of the weights which were expected by then.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter

import pytest
import torch
from tests.support.engines import ALL_ENGINES, NAMES
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
from akkordeon.core.reports import GateRestarted
from akkordeon.core.surgery.messages import Change
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash
from akkordeon.pipeline.learning.kinds import gate_actor
from akkordeon.pipeline.stage import Position
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder
from akkordeon.session.recovery.state_check import require_whole

M = 4
"""Batches of an update; with a power of two the mean of a sum is the sum of means to the bit."""


def adamw(params):
    optimizer = torch.optim.AdamW(params, lr=1e-2)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)


def momentum(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def gradients_of(model, batches):
    for x, y in batches:
        (F.cross_entropy(model(x), y) / len(batches)).backward()
    return [parameter.grad for parameter in model.parameters()]


def plain(model, batches, optimizer, delay):
    """W(t+1) = W(t) - η ∇f(W(t-delay)), for a delay of 0 or 1; or f of what W(t) is expected to be."""
    model = copy.deepcopy(model)
    made = [optimizer(list(part.parameters())) for part in model if list(part.parameters())]
    made = [each if isinstance(each, tuple) else (each, None) for each in made]
    earlier, before = copy.deepcopy(model), copy.deepcopy(model)
    for start in range(0, len(batches), M):
        part = batches[start : start + M]
        at = copy.deepcopy(earlier if delay else model)
        if delay == PREDICTED:
            for guess, was in zip(at.parameters(), before.parameters(), strict=True):
                guess.data.copy_(torch.lerp(was.detach(), guess.detach(), 2.0))
        earlier, before = copy.deepcopy(model), earlier
        for parameter, gradient in zip(model.parameters(), gradients_of(at, part), strict=True):
            parameter.grad = gradient
        for each, scheduler in made:
            each.step()
            if scheduler is not None:
                scheduler.step()
    return model


def trained(network, engine, batches, in_flight, validates=False):
    staleness = {}
    with ak.run(network, engine=engine) as session:
        train = ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight)
        others = [ak.Sentinel.validate(batches, F.cross_entropy, every_updates=2)] if validates else []
        attached, *_ = session.attach_all([train, *others])
        session.wait(timeout=WAIT_S)
        for gate in session.status().gates:
            staleness |= {gate.address: gate.staleness}
        assert attached.batches.as_tuple() == (len(batches), len(batches), 0, 0)
        return session.module(), staleness


PREDICTED = "one update, predicted"
SCHEDULES = {
    "flush": (ak.Flush(M), 0),
    "2bw": (ak.TwoBuffers(M), 1),
    "2bw, prediction": (ak.TwoBuffers(M), PREDICTED),
}


def rule(delay):
    return ak.Prediction() if delay == PREDICTED else ak.Stash()


def row(kind, delay, optimizer, **recipe):
    return small_network(schedule=kind, **recipe).replacing(optimizer=optimizer, staleness=rule(delay))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_in_flight_the_bits_are_those_of_the_loop_with_that_delay(name, schedule):
    kind, delay = SCHEDULES[schedule]
    network, batches = row(kind, delay, adamw), batches_of(10 * M + 1)
    ours, staleness = trained(network, ALL_ENGINES[name](), batches, in_flight=2 * M, validates=True)
    assert same_bits(ours, plain(network.module(), batches, adamw, delay))
    for seen in staleness.values():
        assert seen == ({0: 10 * M + 1} if delay == 0 else {0: M, 1: 9 * M + 1})


@pytest.mark.parametrize("in_flight", [1, 3, M, M + 1, 3 * M])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_how_much_is_in_flight_changes_the_speed_alone(schedule, in_flight):
    kind, delay = SCHEDULES[schedule]
    network, batches = row(kind, delay, momentum), batches_of(8 * M)
    for engine in (ak.Threads(2), ak.Simulator(seed=3)):
        ours, _ = trained(network, engine, batches, in_flight)
        assert same_bits(ours, plain(network.module(), batches, momentum, delay))


# ── what may happen on the way ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_batch_that_the_first_gate_refuses_is_made_up_for_by_the_next(schedule):
    kind, delay = SCHEDULES[schedule]
    network, batches = row(kind, delay, momentum), batches_of(6 * M)
    bad = [(x, y) for x, y in batches]
    for number in (2, M, 3 * M + 1):
        bad.insert(number, (torch.full_like(batches[0][0], torch.nan), batches[0][1]))
    with ak.run(network, engine=ak.Threads(2)) as session:
        attached = session.attach(ak.Sentinel.train(bad, F.cross_entropy, in_flight=2 * M))
        attached.wait(timeout=WAIT_S)
        assert attached.batches.as_tuple() == (6 * M + 3, 6 * M, 3, 0)
        assert same_bits(session.module(), plain(network.module(), batches, momentum, delay))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_another_sentinel_goes_on_where_the_one_before_made_its_last_update(schedule, tmp_path):
    kind, delay = SCHEDULES[schedule]
    network, batches = row(kind, delay, adamw), batches_of(6 * M)

    def run(part, name, **resume):
        with ak.run(network, engine=ak.Threads(1), **resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=2 * M, name=name))
            session.wait(timeout=WAIT_S)
            session.checkpoint(tmp_path)
            return session.module()

    run(batches[: 2 * M], "first")
    kept = CheckpointFolder.inside(tmp_path).latest()
    require_whole(kept)
    again = run(batches[2 * M :], "second", resume=kept)
    assert same_bits(again, plain(network.module(), batches, adamw, delay))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_taken_up_within_an_update_has_the_bits_of_the_one_that_never_stopped(schedule):
    kind, delay = SCHEDULES[schedule]
    network, batches = row(kind, delay, adamw), batches_of(5 * M + 2)
    train = ak.Sentinel.train(batches, F.cross_entropy, in_flight=M + 1, epochs=3, name="tdp")
    with ak.run(network, engine=ak.Threads(1)) as session:
        keep = ak.Sentinel.checkpoint(every_updates=1)
        kept = []
        session.subscribe(
            lambda record: kept.append(record) if isinstance(record, Checkpoint) else None, inline=True
        )
        session.attach_all([train, keep])
        session.wait(timeout=WAIT_S)
    expected = plain(network.module(), batches * 3, adamw, delay)
    gathered = Counter()
    for checkpoint in kept[::3]:
        gathered[len(checkpoint.stages["gate/0"].learner["gathered"]["batches"])] += 1
        with ak.run(network, engine=ak.Threads(2), resume=checkpoint) as session:
            session.attach(train)
            session.wait(timeout=WAIT_S)
            assert same_bits(session.module(), expected)
    assert len(gathered) > 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_same_layers_in_other_gates_go_on_to_the_bit(schedule, tmp_path):
    kind, delay = SCHEDULES[schedule]
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4))
    batches, whole = batches_of(4 * M), None
    for gates, part, name in ((3, batches[: 2 * M], "first"), (2, batches[2 * M :], "second")):
        network = ak.Network.from_module(model, gates, momentum, schedule=kind, staleness=rule(delay))
        with ak.run(network, engine=ak.Threads(1), resume=whole) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=M, name=name))
            session.wait(timeout=WAIT_S)
            whole, ours = session.checkpoint(tmp_path), session.module()
    assert same_bits(ours, plain(model, batches, momentum, delay))


def test_layers_of_gates_of_which_one_expected_nothing_go_on_without_what_others_had(tmp_path):
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 4))
    batches, whole = batches_of(8 * M), None
    for rules, part in (
        ([ak.Prediction(), ak.Prediction(), ak.Stash()], batches),
        ([ak.Prediction()], batches),
    ):
        network = ak.Network.from_module(model, len(rules), momentum, schedule=ak.TwoBuffers(M))
        gates = [dataclasses.replace(g, staleness=r) for g, r in zip(network.gates, rules, strict=True)]
        with ak.run(dataclasses.replace(network, gates=gates), resume=whole) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=M, name=f"of {len(rules)}"))
            session.wait(timeout=WAIT_S)
            whole = session.checkpoint(tmp_path)
    assert all(stage.version == 16 for stage in whole.stages.values())


def test_a_gate_that_is_told_to_predict_otherwise_goes_on_as_one_made_of_what_it_kept():
    def made(rule, restored=None):
        torch.manual_seed(0)
        position = Position("gate/0", 0, schedule=ak.TwoBuffers(1))
        return gate_actor(ak.Gate(nn.Linear(6, 4), momentum, staleness=rule), position, restored)

    gate, rule, cut = made(ak.Prediction()), ak.Prediction(decay=0.5), CutId("a", 0)
    for number in range(3):
        do(gate, forward(number, torch.ones(2, 6)), backward(number, torch.randn(2, 4)))
    do(gate, Change({"staleness": rule}))
    (kept,) = sends(do(gate, Cut(cut, whole=True), Export(cut)), Exported)
    again = made(rule, StageState(gate.version, kept.state, kept.learner))
    for one in (gate, again):
        do(one, forward(3, torch.ones(2, 6)), forward(4, torch.ones(2, 6)))
    for ours, theirs in zip(gate.stash.values(), again.stash.values(), strict=True):
        assert all(map(torch.equal, ours.weights, theirs.weights))


def test_a_recorded_run_is_replayed_to_the_same_bits(tmp_path):
    network, batches = small_network(schedule=ak.TwoBuffers(M)), batches_of(6 * M)
    with ak.run(network, engine=ak.Threads(2), record=tmp_path / "run.record") as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=2 * M))
        session.wait(timeout=WAIT_S)
        module = session.module()
    replayed = ak.replay(
        tmp_path / "run.record", network, [ak.Sentinel.train(batches, F.cross_entropy, in_flight=2 * M)]
    )
    assert same_bits(replayed.module(), module)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gates_that_crash_come_back_and_all_is_accounted_for(schedule):
    kind, delay = SCHEDULES[schedule]
    recovery = ak.Recovery(snapshot_every=1, restarts=99, backoff_s=0.02)
    network, batches = row(kind, delay, momentum, recovery=recovery), batches_of(30 * M)
    compute = Compute({"*": Cost(forward_s=0.01, backward_s=0.01)})
    faults = (Crash(who="gate/*", every_s=0.5, back_after_s=0.1),)
    seen = []
    with ak.run(network, ak.Simulator(5, compute=compute, faults=faults)) as session:
        session.subscribe(seen.append, inline=True)
        attached = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=2 * M))
        session.wait(timeout=WAIT_S)
        sent, trained, refused, lost = attached.batches.as_tuple()
        assert any(isinstance(record, GateRestarted) for record in seen)
        assert (sent, refused) == (30 * M, 0)
        assert sent == trained + lost


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────


def test_what_does_not_go_together_is_refused_in_a_sentence():
    network = small_network()
    for change, sentence in (
        (lambda: ak.Flush(0), "micro_batches"),
        (
            lambda: small_network(schedule="flush"),
            r"schedule is Async\(\), .*got 'flush'",
        ),
        (lambda: dataclasses.replace(network.replacing(accumulate=2), schedule=ak.Flush(4)), "accumulate=2"),
        (
            lambda: dataclasses.replace(network.replacing(staleness=ak.Latest()), schedule=ak.TwoBuffers(4)),
            "keeps no weights but the latest",
        ),
        (lambda: small_network(schedule=ak.TwoBuffers(4), clip_whole_norm=1.0), "clip_norm each instead"),
        (
            lambda: small_network(schedule=ak.TwoBuffers(4), max_staleness=0),
            "all gradients are one update old",
        ),
        (lambda: ak.Downpour(small_network(schedule=ak.Flush(4)), replicas=2), "replicas train without one"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            change()
    assert dataclasses.replace(network.replacing(accumulate=4), schedule=ak.Flush(4)).schedule == ak.Flush(4)


class Writes(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(0.999)
        return super().forward(x)


def test_a_forward_that_writes_to_its_weights_has_its_batches_refused():
    gates = [ak.Gate(Writes(6, 5), momentum), ak.Gate(nn.Linear(5, 4), momentum)]
    network = ak.Network(gates, schedule=ak.TwoBuffers(1))
    with ak.run(network) as session:
        attached = session.attach(ak.Sentinel.train(batches_of(40), F.cross_entropy))
        with pytest.raises(AkkordeonError, match="by its schedule or rule are to stay"):
            attached.wait(timeout=WAIT_S)
