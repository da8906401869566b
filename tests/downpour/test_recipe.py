"""Replicas and shards together: one is the plain loop, many learn as one, and they come and go."""

from __future__ import annotations

import contextlib
import copy
import pickle
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.engines import ENGINES
from tests.support.harness import batches_of, breaking, same_bits, small_network
from tests.support.replicas import (
    check_a_seed_decides_the_bits,
    check_batches_are_conserved,
    check_pushes_are_conserved,
    check_replays_to_the_same_bits,
    pushes_due,
)
from tests.whole.test_exactness import plain_loop
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import (
    DataError,
    GateFailedError,
    NameTakenError,
    RecipeError,
    SentinelFailedError,
    WaitTimeoutError,
)
from akkordeon.core.reports import ShardStatus
from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown
from akkordeon.engines.simulator.distributions import Exponential
from akkordeon.engines.simulator.faults import Crash
from akkordeon.engines.simulator.links import Link

WAIT_S = 30.0
LOCAL = [name for name in ENGINES if name != "ray"]
SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def downpour(network=None, **settings) -> ak.Downpour:
    return ak.Downpour(network or small_network(), **({"server_optimizer": SGD} | settings))


def trained(recipe, batches, engine=None, loss=F.cross_entropy, **sentinel):
    """The module after training, and the session, which has ended."""
    with ak.run(recipe, engine=engine or ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train(batches, loss, **sentinel)).wait(timeout=WAIT_S)
        return session.module(timeout=WAIT_S), session


# ── one replica is the plain loop ────────────────────────────────────────────────────────────────────

PARTS = [
    nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU()),
    nn.Sequential(nn.Linear(9, 7), nn.Tanh()),
    nn.Linear(7, 4),
]


@pytest.mark.parametrize("engine", LOCAL)
@pytest.mark.parametrize("local_step", [True, False])
def test_one_replica_that_waits_for_its_weights_is_the_plain_loop_bit_for_bit(engine, local_step):
    parts, batches = copy.deepcopy(PARTS), batches_of(60)
    expected = plain_loop(parts, [MOMENTUM] * 3, batches, F.cross_entropy)
    recipe = downpour(
        ak.Network([ak.Gate(part, SGD) for part in parts]),
        replicas=1, fetch="wait", local_step=local_step, server_optimizer=MOMENTUM,
    )  # fmt: skip
    module, _ = trained(recipe, batches, ENGINES[engine](), in_flight=1)
    assert same_bits(module, expected)


@pytest.mark.parametrize("local_step", [True, False])
def test_so_it_is_for_two_sigmoid_gates_with_squared_error_in_float64(local_step):
    parts = [nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())]
    parts = [part.double() for part in parts]
    x = torch.randint(2, (300, 2)).double()
    batches = [(x[i : i + 1], (x[i : i + 1, :1] != x[i : i + 1, 1:]).double()) for i in range(300)]
    lr = partial(torch.optim.SGD, lr=0.5)
    expected = plain_loop(parts, [lr] * 2, batches, F.mse_loss)
    recipe = downpour(
        ak.Network([ak.Gate(part, lr) for part in parts]),
        replicas=1, fetch_every=1, push_every=1, fetch="wait", local_step=local_step, server_optimizer=lr,
    )  # fmt: skip
    module, _ = trained(recipe, batches, loss=F.mse_loss, in_flight=1)
    assert same_bits(module, expected)


def test_one_replica_that_waits_and_pushes_differences_at_rate_one_is_the_plain_loop_nearly():
    """Start − (start − now) is now but for rounding: the one thing that is not exact here."""
    parts, batches = mlp(), batches_of(64)
    expected = plain_loop(parts, [SGD] * 3, batches, F.cross_entropy)
    recipe = downpour(
        ak.Network([ak.Gate(part, SGD) for part in parts]),
        replicas=1, fetch="wait", push="differences", push_every=16,
        server_optimizer=partial(torch.optim.SGD, lr=1.0),
    )  # fmt: skip
    module, _ = trained(recipe, batches, in_flight=1)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def mlp():
    return [copy.deepcopy(gate.module) for gate in small_network().gates]


def test_local_sgd_of_one_replica_with_outer_nesterov_is_snoo_by_hand():
    """Every 4 steps: Δ = start − now; m ← 0.9·m + Δ; Θ ← Θ − 0.7·(Δ + 0.9·m); go on from Θ."""
    torch.manual_seed(5)
    model, batches = nn.Linear(6, 4), batches_of(12)
    by_hand = copy.deepcopy(model)
    momenta = [torch.zeros_like(p) for p in by_hand.parameters()]
    for round_ in range(3):
        start = [p.detach().clone() for p in by_hand.parameters()]
        for x, y in batches[4 * round_ : 4 * round_ + 4]:
            grads = torch.autograd.grad(F.cross_entropy(by_hand(x), y), list(by_hand.parameters()))
            with torch.no_grad():
                for p, g in zip(by_hand.parameters(), grads, strict=True):
                    p -= 0.1 * g
        with torch.no_grad():
            for p, s, m in zip(by_hand.parameters(), start, momenta, strict=True):
                delta = s - p
                m.mul_(0.9).add_(delta)
                p.copy_(s - 0.7 * (delta + 0.9 * m))
    recipe = downpour(
        ak.Network([ak.Gate(model, SGD)]), replicas=1, fetch="wait", push="differences", push_every=4,
        server_optimizer=partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True),
    )  # fmt: skip
    module, _ = trained(recipe, batches, in_flight=1)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(module.state_dict()["0." + name], value)


# ── many replicas ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", LOCAL)
def test_every_sample_is_learned_once_by_one_replica_and_every_push_is_counted(engine):
    recipe = downpour(replicas=3, push_every=4)
    with ak.run(recipe, engine=ENGINES[engine]()) as session:
        training = session.attach(ak.Sentinel.train(batches_of(31), F.cross_entropy)).wait(timeout=WAIT_S)
        assert [a.name for a in training] == ["train-0", "train-1", "train-2"]
        assert training.batches.as_tuple() == (31, 31, 0, 0)
        for shard in session.status(timeout=WAIT_S).gates:
            assert isinstance(shard, ShardStatus)
            assert shard.pushes == shard.version == 3 + 3 + 3  # 11, 10 and 10 batches in fours, and the rest


def test_the_master_weights_get_the_sum_of_all_pushes_when_nobody_fetches():
    """Without local steps and with no fetch after the first, every gradient is taken at the start."""
    torch.manual_seed(1)
    model, batches = nn.Linear(6, 4), batches_of(20)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in batches:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for s, g in zip(sums, grads, strict=True):
            s += g
    recipe = downpour(
        ak.Network([ak.Gate(model, SGD)]), replicas=4, push_every=2, fetch_every=1000, local_step=False
    )
    module, _ = trained(recipe, batches)
    for p, q, s in zip(module.parameters(), model.parameters(), sums, strict=True):
        torch.testing.assert_close(p.detach(), q - 0.1 * s)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"server_optimizer": partial(torch.optim.Adagrad, lr=0.05), "warm_start": 10},
        {"push_every": 4, "fetch": "wait"},
        {"staleness": ak.InverseStaleness(), "max_staleness": 20},
        {"staleness": ak.DelayCompensation(), "local_step": False},
        {"push": "differences", "push_every": 4, "fetch": "wait", "server_optimizer":
            partial(ak.DelayedNesterov, lr=0.7, momentum=0.5, buffer=3), "steps_by_speed": True},
        {"compression": "int8", "push_every": 2},
        {"compression": "bf16", "push_every": 2},
        {"compression": "int8", "fetch_compression": "int8"},
        {"fetch_compression": "bf16", "staleness": ak.DelayCompensation(), "local_step": False},
    ],
    ids=str,
)  # fmt: skip
def test_three_replicas_learn_the_digits_under_any_setting(settings):
    from akkordeon.data import datasets

    digits = datasets.digits()
    torch.manual_seed(0)
    network = ak.Network.from_module(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), 2, SGD)
    with ak.run(downpour(network, replicas=3, **settings), engine=ak.Simulator()) as session:
        source = ak.Batches(*digits.train, 32, shuffle=True)
        session.attach(ak.Sentinel.train(source, F.cross_entropy, epochs=8, in_flight=1)).wait(timeout=WAIT_S)
        scores = {"accuracy": ak.accuracy}
        test = session.attach(ak.Sentinel.test(digits.test, F.cross_entropy, scores=scores))
        assert test.wait(timeout=WAIT_S).rounds[0].scores["accuracy"] > 0.8


def test_validation_prediction_and_modules_are_of_the_master_weights():
    recipe = downpour(replicas=2)
    x = torch.randn(20, 6)
    with ak.run(recipe, engine=ak.Simulator()) as session:
        session.attach(ak.Sentinel.validate(batches_of(3), F.cross_entropy, every_updates=5, name="v"))
        session.attach(ak.Sentinel.train(batches_of(20), F.cross_entropy))
        session.wait(timeout=WAIT_S)
        module = session.module(timeout=WAIT_S)
        assert torch.equal(session.predict(x, timeout=WAIT_S), module.eval()(x))
        rounds = next(a for a in session.attachments if a.name == "v").rounds
        assert len(rounds) > 2
        assert rounds[-1].version == 20
    assert same_bits(session.module(), module)


def test_a_downpour_can_be_pickled_with_its_factories_and_spawns():
    recipe = ak.Downpour(ak.Network([ak.Gate(nn.Linear(2, 2), SGD)]))
    again = pickle.loads(pickle.dumps(recipe))
    assert again.sync_policy == recipe.sync_policy
    for spawn in pickle.loads(pickle.dumps(list(recipe.spawns(0)))):
        assert spawn.make().address == spawn.address


def test_replicas_take_their_first_weights_from_the_shards_and_draw_their_own_masks():
    network = ak.Network([ak.Gate(nn.Sequential(nn.Linear(6, 4), ak.nn.Dropout(0.5)), SGD)])
    spawns = {spawn.address: spawn for spawn in downpour(network, replicas=2).spawns(0)}
    assert list(spawns) == ["shard/0", "replica/0/gate/0", "replica/1/gate/0"]


def test_warm_start_has_one_replica_learn_first():
    recipe = downpour(replicas=3, warm_start=6)
    with ak.run(recipe, engine=ak.Simulator()) as session:
        seen = []
        session.subscribe(seen.append)
        session.attach(ak.Sentinel.train(batches_of(30), F.cross_entropy, in_flight=1)).wait(timeout=WAIT_S)
        first = session.status(timeout=WAIT_S).gates[0]
    assert first.version == 30
    assert first.staleness[0] >= 6


def test_a_warm_start_longer_than_the_first_replicas_data_still_ends():
    recipe = downpour(replicas=3, warm_start=1000)
    with ak.run(recipe, engine=ak.Simulator()) as session:
        training = session.attach(ak.Sentinel.train(batches_of(30), F.cross_entropy)).wait(timeout=WAIT_S)
    assert training.batches.trained == 30


@pytest.mark.parametrize("engine", LOCAL)
def test_a_warm_start_ends_when_the_sentinel_that_was_first_fails(engine):
    """All other replicas waited for ever for pushes that nobody was there to make."""

    def breaks():
        yield from batches_of(2)
        raise OSError("the disk is gone")

    with ak.run(downpour(replicas=2, warm_start=100), engine=ENGINES[engine]()) as session:
        first = session.attach(ak.Sentinel.train(breaks(), F.cross_entropy, replica=0, name="first"))
        with pytest.raises(SentinelFailedError, match="the disk is gone"):
            first.wait(timeout=WAIT_S)
        second = session.attach(ak.Sentinel.train(batches_of(9), F.cross_entropy, replica=1, name="second"))
        assert second.wait(timeout=WAIT_S).batches.trained == 9


# ── pushes that are dropped ──────────────────────────────────────────────────────────────────────────


class Overflows(nn.Module):
    """Its weights' gradient is not finite in some batches, and nobody sees it but a sum of many."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x + self.weight


def huge_gradients(y, target):
    """Finite for one batch; the sum of two is not."""
    return (y * torch.finfo(torch.float32).max * 0.9).sum()


def test_batches_whose_push_was_dropped_count_as_refused_and_training_that_came_to_nothing_fails():
    """The sentinel counted them as trained, and its user saw nothing but weights that did not move."""
    recipe = downpour(
        ak.Network([ak.Gate(Overflows(), SGD)]), replicas=1, push_every=2, fetch="wait", local_step=False
    )
    batches = [(torch.zeros(1, 4), torch.zeros(1)) for _ in range(8)]
    with ak.run(recipe, engine=ak.Simulator()) as session:
        training = session.attach(ak.Sentinel.train(batches, huge_gradients, in_flight=1))
        with pytest.raises(SentinelFailedError, match="all 8 of its batches were refused; shard/0 refused"):
            training.wait(timeout=WAIT_S)
        assert training.batches.as_tuple() == (8, 0, 8, 0)
        assert session.status(timeout=WAIT_S).gates[0].refused == {"not_finite": 4}


def test_a_replica_whose_last_ten_pushes_were_dropped_is_given_up():
    recipe = downpour(
        ak.Network([ak.Gate(Overflows(), SGD)]), replicas=1, push_every=2, fetch="wait", local_step=False
    )
    batches = [(torch.zeros(1, 4), torch.zeros(1))] * 4
    with ak.run(recipe, engine=ak.Simulator()) as session:
        training = session.attach(ak.Sentinel.train(batches, huge_gradients, in_flight=1, epochs=10**6))
        with pytest.raises(GateFailedError, match="shard/0 dropped its last 10 pushes"):
            training.wait(timeout=WAIT_S)
        assert training.batches.trained < 3


# ── sentinels of a Downpour ──────────────────────────────────────────────────────────────────────────


def test_samples_are_for_all_replicas_together():
    with ak.run(downpour(replicas=2), engine=ak.Simulator()) as session:
        recipe = ak.Sentinel.train(batches_of(40), F.cross_entropy, samples=160, epochs=None, name="t")
        training = session.attach(recipe).wait(timeout=WAIT_S)
        assert [a.batches.trained for a in training] == [10, 10]


def test_what_attach_gives_offers_what_one_attachment_does_for_all_together():
    batches = batches_of(30, size=4)
    scores = {"accuracy": ak.accuracy}
    with ak.run(downpour(replicas=3), engine=ak.Simulator()) as session:
        recipe = ak.Sentinel.train(
            batches, F.cross_entropy, epochs=3, scores=scores, name="t", report_every=4
        )
        training = session.attach(recipe)
        assert repr(training) == "<Attachments 't': train, 3 replicas, 3 at work>"
        training.wait(timeout=WAIT_S)
        assert repr(training) == "<Attachments 't': train, 3 replicas, ended>"
        assert [epoch.epoch for epoch in training.epochs] == [1, 2, 3]
        assert {(e.sentinel, e.samples, e.refused) for e in training.epochs} == {("t", 120, 0)}
        for whole, *parts in zip(training.epochs, *(member.epochs for member in training), strict=True):
            assert whole.loss == pytest.approx(sum(part.loss for part in parts) / 3)
            mean = sum(part.scores["accuracy"] for part in parts) / 3
            assert whole.scores["accuracy"] == pytest.approx(mean)
            assert whole.staleness_max == max(part.staleness_max for part in parts)
        assert (training.epochs_done, training.samples, len(training)) == (3, 360, 3)
        assert (training.refusals, training.error, training.best_states()) == ([], None, None)
        assert training.samples_wanted == 360
        assert (training.ended, training.stopped) == (True, False)
        progress = training.progress
        assert (progress.sentinel, progress.epoch, progress.batches, progress.samples) == ("t", 3, 12, 48)
        assert progress.loss == pytest.approx(sum(member.progress.loss for member in training) / 3)
        offered = {name for name in dir(training[0]) if not name.startswith("_")}
        assert offered - set(dir(training)) == {"address", "recipe", "row"}


def test_one_replica_can_be_trained_by_name():
    with ak.run(downpour(replicas=2), engine=ak.Simulator()) as session:
        recipe = ak.Sentinel.train(batches_of(8), F.cross_entropy, replica=1, name="t")
        (alone,) = session.attach(recipe).wait(timeout=WAIT_S)
        assert (alone.name, alone.batches.trained) == ("t", 8)
        assert alone.row[0] == "replica/1/gate/0"
        with pytest.raises(RecipeError, match="there is no replica 7; there are 0, 1"):
            session.attach(ak.Sentinel.train(batches_of(8), F.cross_entropy, replica=7))


def test_a_network_has_no_replicas():
    with (
        ak.run(small_network(), engine=ak.Simulator()) as session,
        pytest.raises(RecipeError, match="no replica 1"),
    ):
        session.attach(ak.Sentinel.train(batches_of(1), F.cross_entropy, replica=1))


def test_a_source_that_cannot_be_dealt_out_is_refused_and_names_are_taken_together():
    with ak.run(downpour(replicas=2), engine=ak.Threads(2)) as session:
        with pytest.raises(DataError, match="read only once"):
            session.attach(ak.Sentinel.train(iter(batches_of(9)), F.cross_entropy))
        endless = [ak.Sentinel.train(batches_of(4), F.cross_entropy, epochs=10**9, name="t")] * 2
        first = session.attach(endless[0])
        with pytest.raises(NameTakenError, match="'t-0', 't-1'"):
            session.attach(endless[1])
        first.detach()
        first.wait(timeout=WAIT_S)


# ── coming and going ─────────────────────────────────────────────────────────────────────────────────


def endless(**more):
    return ak.Sentinel.train(batches_of(4), F.cross_entropy, epochs=10**9, **more)


@pytest.mark.parametrize("drop", [False, True])
def test_a_replica_leaves_and_another_comes(drop):
    with ak.run(downpour(replicas=2), engine=ak.Threads(2)) as session:
        training = session.attach(endless(name="t"))
        session.remove_replica(0, drop=drop, timeout=WAIT_S)
        assert session.replicas == (1,)
        assert training[0].ended
        assert not training[1].ended
        new = session.add_replica()
        assert (new, session.replicas) == (2, (1, 2))
        other = session.attach(ak.Sentinel.train(batches_of(7), F.cross_entropy, replica=new, name="new"))
        assert other.wait(timeout=WAIT_S).batches.trained == 7
        training.detach()
        training.wait(timeout=WAIT_S)
        for a in training:
            assert a.batches.sent == a.batches.trained + a.batches.refused + a.batches.lost
        with pytest.raises(RecipeError, match="no replica 0"):
            session.remove_replica(0)


def test_of_replicas_that_came_and_went_nothing_is_kept():
    """Each left a status with the supervisor, a probe's number, and its name at every shard."""
    engine = ak.Simulator()
    with ak.run(downpour(replicas=1), engine=engine) as session:
        for _ in range(3):
            new = session.add_replica()
            session.attach(ak.Sentinel.train(batches_of(3), F.cross_entropy, replica=new)).wait(WAIT_S)
            session.remove_replica(new)
        engine.wait_until(lambda: False, 100)
        session.status(timeout=WAIT_S)
        shards = session.network.row()
        assert set(session._supervisor.gates) == set(session._supervisor.answered) == set(shards)
        for shard in shards:
            assert not engine._cells[shard].actor._forgotten


def test_a_late_replica_goes_on_with_the_running_statistics_of_the_others():
    """It began with the recipe's, and its first push put those into the shard: 0.97 became 0.21."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    network = ak.Network([ak.Gate(net, SGD)])
    x, y = torch.randn(400, 6) * 20 + 100, torch.randint(4, (400,))
    with ak.run(downpour(network, replicas=1, fetch="wait"), engine=ak.Simulator()) as session:
        first = ak.Sentinel.train(ak.Batches(x, y, 8), F.cross_entropy, epochs=2, in_flight=1)
        session.attach(first).wait(timeout=WAIT_S)
        before = session.states(timeout=WAIT_S)["gate/0"]
        late = ak.Sentinel.train(
            ak.Batches(x[:24], y[:24], 8), F.cross_entropy, in_flight=1, replica=session.add_replica()
        )
        session.attach(late).wait(timeout=WAIT_S)
        after = session.states(timeout=WAIT_S)["gate/0"]
    assert before["0.num_batches_tracked"] == 100
    assert after["0.num_batches_tracked"] == 103
    assert not torch.equal(before["0.running_mean"], after["0.running_mean"])
    torch.testing.assert_close(before["0.running_mean"], after["0.running_mean"], rtol=0.1, atol=0)


def test_three_replicas_count_all_batches_and_agree_on_their_statistics():
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    batches = [(torch.randn(32, 6) + 5, torch.randint(4, (32,))) for _ in range(150)]
    recipe = downpour(ak.Network([ak.Gate(net, SGD)]), replicas=3, push_every=2)
    module, _ = trained(recipe, batches, ak.Simulator())
    assert module[0][0].num_batches_tracked == 150
    torch.testing.assert_close(module[0][0].running_mean, torch.full((6,), 5.0), rtol=0.05, atol=0)


def test_a_replica_that_comes_late_starts_from_the_masters():
    with ak.run(downpour(replicas=1, fetch="wait"), engine=ak.Simulator()) as session:
        session.attach(ak.Sentinel.train(batches_of(10), F.cross_entropy, in_flight=1)).wait(timeout=WAIT_S)
        new = session.add_replica()
        session.attach(ak.Sentinel.train(batches_of(5), F.cross_entropy, replica=new, in_flight=1))
        session.wait(timeout=WAIT_S)
        assert session.status(timeout=WAIT_S).gates[0].staleness == {0: 15}


class Fails(nn.Linear):
    """Raises in the backward of the batch whose first element is 13."""

    def forward(self, x):
        y = super().forward(x)
        return breaking(y, RuntimeError("bad luck")) if float(x[0, 0]) == 13 else y


def unlucky() -> ak.Downpour:
    network = ak.Network([ak.Gate(nn.Sequential(Fails(6, 4)), SGD), ak.Gate(nn.Linear(4, 4), SGD)])
    return downpour(network, replicas=3)


@pytest.mark.parametrize("engine", LOCAL)
def test_a_replica_that_fails_costs_its_own_work_alone(engine):
    batches = batches_of(30)
    batches[10][0][0, 0] = 13  # the fourth batch of replica 1
    with ak.run(unlucky(), engine=ENGINES[engine]()) as session:
        training = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=2))
        with pytest.raises(
            GateFailedError, match=r"replica/1/gate/0 failed on Backward of batch 3.*bad luck"
        ):
            training.wait(timeout=WAIT_S)
        assert list(training.errors) == [1]
        assert [a.batches.trained for a in (training[0], training[2])] == [10, 10]
        sent, done, refused, lost = training[1].batches.as_tuple()
        assert sent == done + refused + lost
        assert session.replicas == (0, 2)
        again = session.attach(ak.Sentinel.train(batches_of(6), F.cross_entropy)).wait(timeout=WAIT_S)
        assert again.batches.trained == 6
        assert len(session.module(timeout=WAIT_S)) == 2


def test_a_replica_that_crashes_costs_its_own_work_alone():
    engine = ak.Simulator(
        compute=Compute({"replica/*": Cost(forward_s=0.01, backward_s=0.01)}),
        faults=[Crash(who="replica/1/gate/1", at_s=0.2)],
    )
    with ak.run(downpour(replicas=3), engine=engine) as session:
        training = session.attach(ak.Sentinel.train(batches_of(60), F.cross_entropy))
        with pytest.raises(GateFailedError, match="replica/1/gate/1 is lost"):
            training.wait(timeout=WAIT_S)
        assert [a.batches.trained for a in (training[0], training[2])] == [20, 20]
        assert session.replicas == (0, 2)


def test_a_shard_that_fails_ends_the_session():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no more")

    with ak.run(downpour(replicas=2, server_optimizer=partial(Broken, lr=0.1))) as session:
        training = session.attach(ak.Sentinel.train(batches_of(9), F.cross_entropy))
        with pytest.raises(GateFailedError, match=r"shard/\d failed on Push"):
            training.wait(timeout=WAIT_S)


def test_removing_waits_no_longer_than_it_is_told():
    engine = ak.Simulator(compute=Compute({"replica/0/*": Cost(forward_s=1000.0), "*": Cost(message_s=0.1)}))
    with ak.run(downpour(replicas=2), engine=engine) as session:
        session.attach(endless(name="t"))
        engine.wait_until(lambda: False, 1.0)
        with pytest.raises(WaitTimeoutError, match="replica 0 have not ended"):
            session.remove_replica(0, timeout=1.0)


def embeds(**settings) -> ak.Network:
    return ak.Network([ak.Gate(nn.Sequential(nn.Embedding(9, 4, **settings), nn.Flatten()), SGD)])


def test_an_embedding_that_keeps_its_norm_can_be_pushed_as_differences():
    batches = [(torch.randint(9, (8, 1)), torch.randint(4, (8,))) for _ in range(30)]
    network = embeds(max_norm=0.5)
    expected = plain_loop([network.gates[0].module], [SGD], batches, F.cross_entropy)
    settings = {"replicas": 1, "fetch": "wait", "push": "differences"}
    recipe = downpour(network, server_optimizer=partial(torch.optim.SGD, lr=1.0), **settings)
    module, _ = trained(recipe, batches, in_flight=1)
    torch.testing.assert_close(module[0][0].weight, expected[0][0].weight)


# ── recipes that cannot be ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"replicas": 0}, "replicas is at least 1"),
        ({"warm_start": -1}, "warm_start is at least 0"),
        ({"max_staleness": -1}, "max_staleness is at least 0"),
        ({"push_every": 0}, "push_every is at least 1"),
        ({"fetch": "never"}, "'background' or 'wait'"),
        ({"push": "weights"}, "'gradients' or 'differences'"),
        ({"compression": "zip"}, "compression is"),
        ({"fetch_compression": 8}, "fetch_compression is None, 'bf16' or 'int8', got 8"),
        ({"server_optimizer": 0.1}, "server_optimizer is a function"),
        ({"staleness": "latest"}, r"staleness is a rule such as Stash\(\), got 'latest'"),
        ({"staleness": ak.DelayCompensation()}, "push_every=1 and local_step=False"),
        ({"staleness": ak.DelayCompensation(), "local_step": False, "push_every": 2}, "push_every=1"),
        ({"push": "differences", "local_step": False}, "no difference to push"),
        (
            {"network": embeds(max_norm=1.0)},
            "max_norm: its module writes to its weight '0.weight'",
        ),
        ({"network": nn.Linear(2, 2)}, "replicates a Network, got Linear"),
        ({"network": small_network().replacing(ak.Latest()), "push": "differences"}, "keep weights"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_at_once(settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        downpour(**settings)


# ── any order, any time ──────────────────────────────────────────────────────────────────────────────

WORLDS = st.fixed_dictionaries(
    {
        "replicas": st.integers(1, 4),
        "push_every": st.integers(1, 4),
        "fetch_every": st.none() | st.integers(1, 4),
        "fetch": st.sampled_from(["background", "wait"]),
        "local_step": st.booleans(),
        "warm_start": st.integers(0, 5),
        "max_staleness": st.none() | st.integers(0, 3),
        "fetch_compression": st.sampled_from([None, "int8"]),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(WORLDS, st.integers(0, 10**6), st.integers(1, 4), st.none() | st.integers(0, 40))
def test_in_any_world_batches_and_pushes_are_conserved_and_nothing_hangs(world, seed, in_flight, crash):
    engine = ak.Simulator(
        seed,
        links=Link(Exponential(0.02)),
        compute=Compute({"*": Cost(message_s=0.01)}, slowdowns=[Slowdown("replica/1/*", 5.0)]),
        faults=[] if crash is None else [Crash(who="replica/0/gate/1", at_s=0.05 * crash)],
    )
    with ak.run(downpour(**world), engine=engine) as session:
        session.attach(ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_updates=3, name="v"))
        training = session.attach(ak.Sentinel.train(batches_of(12), F.cross_entropy, in_flight=in_flight))
        with contextlib.suppress(GateFailedError):
            session.wait(timeout=1000)
        lost = [str(error) for error in training.errors.values()]
        assert lost == [] if crash is None else all("replica/0/gate/1 is lost" in why for why in lost)
        check_batches_are_conserved(training, may_refuse=world["max_staleness"] is not None)
        engine.wait_until(lambda: False, 100)
        shards = session.status(timeout=1000).gates
        check_pushes_are_conserved(shards, world["max_staleness"])
        if world["max_staleness"] is None and crash is None:
            assert {shard.version for shard in shards} == {pushes_due(training, world["push_every"])}


def test_the_simulator_gives_the_same_bits_for_the_same_seed():
    check_a_seed_decides_the_bits(lambda: downpour(small_network(), replicas=3))


@pytest.mark.parametrize("engine", LOCAL)
@pytest.mark.parametrize("push", ["gradients", "differences"])
def test_a_recorded_downpour_is_replayed_to_the_same_bits(engine, push, tmp_path):
    both = {"compression": "int8", "fetch_compression": "int8"}
    recipe = downpour(replicas=3, push_every=2, push=push, **both)
    check_replays_to_the_same_bits(recipe, ENGINES[engine](), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{}, {"local_step": False}, {"push_every": 3}, {"compression": "int8", "push_every": 2}],
    ids=str,
)
def test_sparse_gradients_travel_as_they_are_or_compressed(settings):
    parts = [nn.Sequential(nn.Embedding(11, 5, sparse=True), nn.Flatten()), nn.Linear(15, 4)]
    recipe = downpour(ak.Network([ak.Gate(part, SGD) for part in parts]), replicas=2, **settings)
    batches = [(torch.randint(11, (8, 3)), torch.randint(4, (8,))) for _ in range(20)]
    _, session = trained(recipe, batches, ak.Simulator(links=Link(1e-3, bytes_per_s=1e9)))
    assert [a.batches.trained for a in session.attachments if a.role == "train"] == [10, 10]
    assert all(not gate.refused for gate in session.status().gates)


def test_so_it_is_when_replicas_come_and_go(tmp_path):
    recipe, file = downpour(replicas=2), tmp_path / "record.gz"
    whole = ak.Sentinel.train(batches_of(12), F.cross_entropy, name="t")
    late = ak.Sentinel.train(batches_of(5), F.cross_entropy, name="late", replica=2)
    with ak.run(recipe, engine=ak.Threads(2), record=file) as session:
        session.attach(whole)
        assert session.add_replica() == 2
        session.attach(late)
        session.wait(timeout=WAIT_S)
        session.remove_replica(0)
    assert same_bits(ak.replay(file, recipe, [whole, late]).module(), session.module())
