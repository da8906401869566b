"""A position whose master weights are on several shards is as one whose weights are on one."""

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
from tests.support.harness import (
    WAIT_S,
    backward,
    batches_of,
    do,
    forward,
    reports,
    same_bits,
    sends,
    small_network,
)
from tests.support.replicas import (
    check_a_seed_decides_the_bits,
    check_batches_are_conserved,
    check_pushes_are_conserved,
    check_replays_to_the_same_bits,
    pushes_due,
)
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import GateFailedError, RecipeError
from akkordeon.core.messages import Cut, CutId, Export, Exported, Forget
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.reports import GateLeft, ShardStatus
from akkordeon.core.shard_messages import Fetch, Parameters, Push, Settle, Settled
from akkordeon.data import datasets
from akkordeon.downpour.replica_gate import ReplicaGate
from akkordeon.downpour.shard import ParameterShard, ShardActor
from akkordeon.downpour.split_shard import FrontRole, PartRole, divide_weights, part_of
from akkordeon.downpour.sync_policy import SyncPolicy
from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown
from akkordeon.engines.simulator.distributions import Exponential
from akkordeon.engines.simulator.faults import Crash
from akkordeon.engines.simulator.links import Link
from akkordeon.pipeline.stage import Position

SGD = partial(torch.optim.SGD, lr=0.1)
LOCAL = [name for name in ENGINES if name != "ray"]
TENSOR = 1
"""Bytes: so few that every tensor gets a shard of its own."""


def downpour(network=None, **settings) -> ak.Downpour:
    given = {"server_optimizer": SGD, "max_shard_bytes": TENSOR} | settings
    return ak.Downpour(network or small_network(), **given)


def trained(recipe, batches, engine=None, **sentinel):
    with ak.run(recipe, engine=engine or ak.Simulator()) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, **sentinel)).wait(timeout=WAIT_S)
        return session.module(timeout=WAIT_S)


# ── how a position is split ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limit", "parts"),
    [
        (1, [(0,), (1,), (2,), (3,)]),
        (9 * 4, [(0,), (1,), (2, 3)]),
        (8 * 4, [(0,), (1,), (2, 3)]),
        (20 * 4, [(0, 1), (2, 3)]),
        (21 * 4, [(0, 1), (2, 3)]),
        (28 * 4, [(0, 1, 2, 3)]),
    ],
)
def test_tensors_are_dealt_out_whole_and_in_order_up_to_the_limit(limit, parts):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 2))  # 16, 4, 6 and 2 numbers
    assert divide_weights(module, limit) == parts


def test_weights_that_do_not_train_belong_to_no_part():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].requires_grad_(False)
    assert divide_weights(module, TENSOR) == [(2,), (3,)]
    assert divide_weights(nn.ReLU(), TENSOR) == []


def test_a_part_has_its_weights_under_their_names_and_travels_without_the_others():
    module = nn.Sequential(nn.Linear(300, 300), nn.Linear(3, 3))
    part = part_of(module, (1, 2))
    assert [name for name, _ in part.named_parameters()] == ["0.bias", "1.weight"]
    assert len(pickle.dumps(part)) < 10_000


def test_only_positions_above_the_limit_are_split_and_the_row_of_shards_has_all():
    recipe = downpour(replicas=1, max_shard_bytes=63 * 4)  # 54 + 9, 63 + 7 and 28 + 4 numbers
    assert recipe.row() == ("shard/0", "shard/1", "shard/1.1", "shard/1.2", "shard/2")
    assert [spawn.address for spawn in recipe.spawns(0)][:5] == list(recipe.row())


def test_no_limit_a_high_one_and_nothing_to_learn_leave_a_position_whole():
    assert downpour(max_shard_bytes=None).row() == ("shard/0", "shard/1", "shard/2")
    assert downpour(max_shard_bytes=10**9).row() == ("shard/0", "shard/1", "shard/2")
    still = ak.Network([ak.Gate(nn.Linear(6, 6)), ak.Gate(nn.Linear(6, 4, bias=False), SGD)])
    assert downpour(still).row() == ("shard/0", "shard/1")


@pytest.mark.parametrize("wrong", [0, -5])
def test_a_limit_below_one_is_refused_in_one_sentence(wrong):
    with pytest.raises(RecipeError, match=rf"^max_shard_bytes is at least 1, got {wrong}$"):
        downpour(max_shard_bytes=wrong)


# ── split equals whole ───────────────────────────────────────────────────────────────────────────────

PARTS = [
    nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU()),
    nn.Sequential(nn.Linear(9, 7), nn.Tanh()),
    nn.Linear(7, 4),
]
SERVERS = {
    "sgd": SGD,
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "scheduled": lambda params: (o := SGD(params), torch.optim.lr_scheduler.StepLR(o, 7)),
}


@pytest.mark.parametrize("engine", LOCAL)
@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("limit", [TENSOR, 200])
def test_one_replica_that_waits_gives_the_bits_of_whole_positions(engine, server, limit):
    network, batches = ak.Network([ak.Gate(copy.deepcopy(part), SGD) for part in PARTS]), batches_of(40)
    recipe = partial(downpour, network, replicas=1, fetch="wait", server_optimizer=SERVERS[server])
    whole = trained(recipe(max_shard_bytes=None), batches, in_flight=1)
    split = trained(recipe(max_shard_bytes=limit), batches, ENGINES[engine](), in_flight=1)
    assert same_bits(split, whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"local_step": False, "staleness": ak.DelayCompensation()},
        {"push_every": 3, "fetch_every": 2},
        {"push": "differences", "push_every": 4},
        {"compression": "int8", "push_every": 2},
        {"compression": "bf16", "steps_by_speed": True},
        {"warm_start": 5, "max_staleness": 0},
    ],
    ids=str,
)
def test_so_it_does_under_every_other_setting(settings):
    network = ak.Network([ak.Gate(copy.deepcopy(part), SGD, clip_norm=0.5) for part in PARTS])
    recipe, batches = partial(downpour, network, replicas=1, fetch="wait", **settings), batches_of(40)
    whole = trained(recipe(max_shard_bytes=None), batches, in_flight=1)
    assert same_bits(trained(recipe(), batches, in_flight=1), whole)


def test_a_weight_that_two_layers_share_is_in_one_part():
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))
    module[2].weight = module[0].weight
    network, batches = ak.Network([ak.Gate(module, SGD)]), batches_of(20)
    recipe = partial(downpour, network, replicas=1, fetch="wait")
    whole = trained(recipe(max_shard_bytes=None), batches, in_flight=1)
    assert same_bits(trained(recipe(), batches, in_flight=1), whole)


def test_weights_that_do_not_train_stay_and_are_in_the_module():
    first = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    first[0].weight.requires_grad_(False)
    module = trained(
        downpour(ak.Network([ak.Gate(first, SGD), ak.Gate(nn.Linear(6, 4), SGD)])), batches_of(9)
    )
    assert torch.equal(module[0][0].weight, first[0].weight)
    assert not torch.equal(module[0][0].bias, first[0].bias)


def test_a_recurrent_layer_can_be_split():
    class Last(nn.Module):
        def forward(self, given):
            return given[0][:, -1]

    network = ak.Network([ak.Gate(nn.Sequential(nn.GRU(3, 5, batch_first=True), Last()), SGD)])
    batches = [(torch.randn(4, 7, 3), torch.randint(5, (4,))) for _ in range(10)]
    recipe = partial(downpour, network, replicas=1, fetch="wait")
    whole = trained(recipe(max_shard_bytes=None), batches, in_flight=1)
    assert same_bits(trained(recipe(), batches, in_flight=1), whole)


# ── a front and its parts, by hand ───────────────────────────────────────────────────────────────────


def position() -> tuple[ShardActor, ShardActor, ShardActor]:
    """A position of a weight and a bias, each in a part of its own."""
    module = nn.Linear(2, 1)
    parts = {"shard/0.1": (0,), "shard/0.2": (1,)}
    empty = ParameterShard(module, None, held_elsewhere=(0, 1))
    front = ShardActor(empty, Position("shard/0", 0), partial(FrontRole, parts))
    one, other = (
        ShardActor(
            ParameterShard(part_of(module, indices), SGD),
            Position(part, 0, previous),
            partial(PartRole, "shard/0"),
        )
        for (part, indices), previous in zip(parts.items(), ("shard/0", "shard/0.1"), strict=True)
    )
    return front, one, other


def cut_at(part: ShardActor, number: int = 0) -> tuple[Parameters, Cut]:
    """What a part sends to the front, and the cut as it goes on."""
    weights, cut = do(part, Cut(CutId("s", number)))
    assert (weights.to, cut.to) == ("shard/0", part.position.previous)
    return weights.message, cut.message


def learned(part: ShardActor, *gradient) -> None:
    do(part, Fetch("r"), Push("r", part.version, 1, gradient))


def test_a_front_holds_a_cut_back_until_it_has_the_weights_of_all_parts():
    front, one, other = position()
    learned(one, torch.ones(1, 2))
    learned(other, torch.ones(1))
    cut = Cut(CutId("s", 0), (1, 1))
    assert do(front, cut_at(one)[0], cut) == []
    (passed,) = sends(do(front, cut_at(other)[0]))
    assert passed.versions == (1, 1, 0)
    pinned = front.pins[cut.cut].weights
    assert torch.equal(pinned[0], one.weights.now[0])
    assert torch.equal(pinned[1], other.weights.now[0])


def test_two_cuts_pin_the_weights_of_their_own_time_in_whatever_order_these_come():
    front, one, other = position()
    first = [cut_at(part)[0] for part in (one, other)]
    learned(one, torch.ones(1, 2))
    second = [cut_at(part, 1)[0] for part in (one, other)]
    before = front.weights.now[0].clone()
    sent = do(front, first[0], second[0], Cut(CutId("s", 0)), Cut(CutId("s", 1)), first[1], second[1])
    assert [cut.cut.number for cut in sends(sent, Cut)] == [0, 1]
    assert torch.equal(front.pins[CutId("s", 0)].weights[0], before)
    assert torch.equal(front.pins[CutId("s", 1)].weights[0], one.weights.now[0])


def test_weights_that_the_front_has_are_not_sent_again():
    _, one, _ = position()
    assert cut_at(one)[0].payload == ()
    learned(one, torch.ones(1, 2))
    assert [len(cut_at(one, number)[0].payload) for number in (1, 2)] == [1, 0]


def test_a_cut_of_a_sentinel_that_has_died_is_not_pinned_and_leaves_nothing():
    front, one, other = position()
    do(front, Cut(CutId("s", 0)), Forget("s"))
    (passed,) = sends(do(front, cut_at(one)[0], cut_at(other)[0]))
    assert isinstance(passed, Cut)
    assert front.pins == {}
    assert not front.role._waiting


def test_a_part_that_was_made_anew_holds_up_no_later_cut_and_leaves_nothing_of_the_earlier():
    front, one, other = position()
    learned(one, torch.ones(1, 2))
    cuts = [Cut(CutId("s", number)) for number in (0, 1)]
    assert sends(do(front, cut_at(one, 0)[0], cuts[0])) == []  # the other part was gone when it came
    (passed,) = sends(do(front, cut_at(one, 1)[0], cut_at(other, 1)[0], cuts[1]))
    assert passed.cut == cuts[1].cut
    assert torch.equal(front.pins[cuts[1].cut].weights[0], one.weights.now[0])
    assert not front.role._waiting


def test_a_front_that_was_made_anew_is_sent_the_weights_again():
    _, one, _ = position()
    learned(one, torch.ones(1, 2))
    assert [len(cut_at(one, number)[0].payload) for number in (0, 1)] == [1, 0]
    do(one, Restarted("shard/0"))
    assert len(cut_at(one, 2)[0].payload) == 1


def test_everything_is_exported_and_left_behind_once_by_whoever_holds_it():
    front, one, other = position()
    cut = CutId("s", 0)
    weights = [cut_at(part)[0] for part in (one, other)]
    do(front, *weights, Cut(cut))
    exported = [sends(do(actor, Export(cut)), Exported)[0] for actor in (front, one, other)]
    assert [list(message.state) for message in exported] == [[], ["weight"], ["bias"]]
    left = [reports(list(actor.last_words()), GateLeft)[0] for actor in (front, one, other)]
    assert [list(record.state) for record in left] == [[], ["weight"], ["bias"]]


# ── the gate of a replica, by hand ───────────────────────────────────────────────────────────────────

G, X = torch.tensor([[1.0]]), torch.tensor([[1.0, 2.0]])


def replica(**policy) -> ReplicaGate:
    parts = {"shard/0.1": (0,), "shard/0.2": (1,)}
    gate = ak.Gate(nn.Linear(2, 1), SGD)
    return ReplicaGate(gate, Position("r/gate/0", 0), SyncPolicy(**policy), "shard/0", parts)


def lent(shard: str, version: int, value: float = 0.0) -> Parameters:
    payload = {
        "shard/0": (),
        "shard/0.1": (torch.full((1, 2), value),),
        "shard/0.2": (torch.full((1,), value),),
    }
    return Parameters(shard, version, payload[shard])


SHARDS = ("shard/0", "shard/0.1", "shard/0.2")


def test_the_front_is_asked_first_and_a_forward_waits_for_all():
    actor = replica()
    assert [effect.to for effect in do(actor, forward(0, X))] == ["shard/0"]
    assert [effect.to for effect in do(actor, lent("shard/0", 3))] == ["shard/0.1", "shard/0.2"]
    assert do(actor, lent("shard/0.2", 9, 1.0)) == []
    (out,) = sends(do(actor, lent("shard/0.1", 7, 2.0)))
    assert out.payload.item() == 2.0 * 3 + 1.0


def test_every_shard_gets_its_own_and_is_told_its_own_version():
    actor = replica(local_step=False)
    do(actor, forward(0, X), *(lent(shard, version) for version, shard in enumerate(SHARDS, 5)))
    pushed = do(actor, backward(0, G))[1:]
    assert [effect.to for effect in pushed] == list(SHARDS)
    assert [effect.message.version for effect in pushed] == [5, 6, 7]
    assert [[t.flatten().tolist() for t in effect.message.payload] for effect in pushed] == [
        [], [[1.0, 2.0]], [[1.0]],
    ]  # fmt: skip


def test_a_push_goes_back_to_the_weights_of_its_own_shard_that_the_batch_was_worked_on_with():
    actor = replica(fetch_every=100)
    do(actor, forward(0, X), *(lent(shard, 0) for shard in SHARDS))
    do(actor, forward(1, X), lent("shard/0.2", 1), forward(2, X), lent("shard/0.1", 4), lent("shard/0.2", 5))
    versions = [[push.version for push in sends(do(actor, backward(n, G)), Push)] for n in (0, 1, 2)]
    assert versions == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_a_fetch_counts_once_in_the_staleness_of_local_steps_from_however_many_shards():
    actor = replica(push_every=100)
    do(actor, forward(0, X), *(lent(shard, 0) for shard in SHARDS))
    before = actor.version
    do(actor, *(lent(shard, 1) for shard in SHARDS))
    assert actor.version == before + 1


def test_it_is_settled_once_every_shard_is():
    actor = replica()
    assert [effect.to for effect in do(actor, Settle("a"), Settle("b"))] == [*SHARDS, *SHARDS]
    assert do(actor, *(Settled(shard, number) for number in (0, 1) for shard in SHARDS[:2])) == []
    (first,) = do(actor, Settled("shard/0.2", 0))
    (second,) = do(actor, Settled("shard/0.2", 1))
    assert [first.to, second.to] == ["a", "b"]
    assert first.message == Settled("r/gate/0")


def test_what_comes_late_from_one_shard_holds_up_the_next_forward():
    actor = replica()
    do(actor, forward(0, X), *(lent(shard, 0) for shard in SHARDS), forward(1, X))
    do(actor, backward(0, G), *(lent(shard, 1) for shard in SHARDS[:2]))
    do(actor, backward(1, G), *(lent(shard, 2) for shard in SHARDS[:2]))
    assert do(actor, forward(2, X)) == []
    again, out = do(actor, lent("shard/0.2", 1))
    assert (again.to, again.message) == ("shard/0.2", Fetch("r/gate/0"))
    assert out.message.batch.number == 2


# ── many replicas ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"server_optimizer": partial(torch.optim.Adagrad, lr=0.05), "warm_start": 10},
        {"staleness": ak.DelayCompensation(), "local_step": False, "max_staleness": 20},
        {"push": "differences", "push_every": 4, "fetch": "wait", "server_optimizer":
            partial(ak.DelayedNesterov, lr=0.7, momentum=0.5, buffer=3), "steps_by_speed": True},
        {"compression": "int8", "push_every": 2, "staleness": ak.InverseStaleness()},
        {"compression": "int8", "fetch_compression": "int8"},
    ],
    ids=str,
)  # fmt: skip
def test_three_replicas_learn_the_digits(settings):
    digits = datasets.digits()
    torch.manual_seed(0)
    network = ak.Network.from_module(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), 1, SGD)
    recipe = downpour(network, replicas=3, **({"max_shard_bytes": 2000} | settings))
    assert len(recipe.row()) == 3  # the first weights alone weigh 8,192 bytes, all others 1,448
    with ak.run(recipe, engine=ak.Simulator()) as session:
        source = ak.Batches(*digits.train, 32, shuffle=True)
        session.attach(ak.Sentinel.train(source, F.cross_entropy, epochs=8, in_flight=1)).wait(timeout=WAIT_S)
        scores = {"accuracy": ak.accuracy}
        test = session.attach(ak.Sentinel.test(digits.test, F.cross_entropy, scores=scores))
        assert test.wait(timeout=WAIT_S).rounds[0].scores["accuracy"] > 0.8


@pytest.mark.parametrize("engine", LOCAL)
def test_every_shard_of_a_position_gets_every_push_and_says_so(engine):
    with ak.run(downpour(replicas=3, push_every=4), engine=ENGINES[engine]()) as session:
        training = session.attach(ak.Sentinel.train(batches_of(31), F.cross_entropy)).wait(timeout=WAIT_S)
        assert training.batches.as_tuple() == (31, 31, 0, 0)
        found = session.status(timeout=WAIT_S).gates
        assert [shard.address for shard in found] == list(session.network.row())
        for shard in found:
            assert isinstance(shard, ShardStatus)
            assert shard.pushes == shard.version == 3 + 3 + 3
            assert (shard.bytes_in > 0) == ("." in shard.address)


def test_parts_of_a_named_gate_are_named_after_it():
    network = ak.Network([ak.Gate(nn.Linear(6, 4), SGD, name="head")])
    with ak.run(downpour(network), engine=ak.Simulator()) as session:
        assert [shard.name for shard in session.status(timeout=WAIT_S).gates] == ["head", "head.1", "head.2"]


def test_evaluations_are_of_the_weights_that_are_exported_while_training_goes_on():
    engine = ak.Simulator(links=Link(Exponential(0.02)), compute=Compute({"*": Cost(message_s=0.005)}))
    test = batches_of(3)
    seen = []
    with ak.run(downpour(replicas=3), engine=engine) as session:
        best = ak.Best("loss")
        session.attach(ak.Sentinel.validate(test, F.cross_entropy, every_updates=5, best=best, name="v"))
        session.attach(ak.Sentinel.train(batches_of(60), F.cross_entropy, in_flight=2))
        for name in ("one", "two"):
            session.attach(ak.Sentinel.validate(test, F.cross_entropy, every_updates=3, name=name))
        session.subscribe(lambda record: seen.append((record, session.best_module())), inline=True)
        session.wait(timeout=1000)
        module = session.module(timeout=1000)
        x = torch.randn(20, 6)
        assert torch.equal(session.predict(x, timeout=1000), module.eval()(x))
    assert same_bits(session.module(), module)
    kept = [(r.loss, m) for r, m in seen if getattr(r, "best", False)]
    assert len(kept) > 1
    for loss, of in kept:
        with torch.no_grad():
            again = sum(F.cross_entropy(of.eval()(x), y).item() for x, y in test) / len(test)
        assert again == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("leaves", ["when its batches are home", "at once", "as it fails"])
def test_a_replica_that_leaves_leaves_nothing_behind(leaves):
    engine = ak.Simulator(
        compute=Compute({"*": Cost(message_s=0.01)}),
        faults=[Crash(who="replica/0/gate/1", at_s=0.3)] if leaves == "as it fails" else [],
    )
    recipe = downpour(replicas=2, staleness=ak.DelayCompensation(), local_step=False, steps_by_speed=True)
    with ak.run(recipe, engine=engine) as session:
        training = session.attach(ak.Sentinel.train(batches_of(80), F.cross_entropy, in_flight=2))
        engine.wait_until(lambda: False, 0.2)
        if leaves != "as it fails":
            session.remove_replica(0, drop=leaves == "at once", timeout=1000)
        with contextlib.suppress(GateFailedError):
            training.wait(timeout=1000)
        engine.wait_until(lambda: False, 10.0)
        assert session.replicas == (1,)
        for address in recipe.row():
            shard = engine._cells[address].actor
            assert not any(asker.startswith("replica/0/") for asker in shard._lent)
            assert all(asker.startswith("replica/1/") for asker in shard._steps_by_speed._per_s)
            assert sum(map(len, shard._lent.values())) <= 3  # what two batches in flight may go back to


def test_a_part_that_fails_ends_the_session():
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no more")

    with ak.run(downpour(replicas=2, server_optimizer=partial(Broken, lr=0.1))) as session:
        training = session.attach(ak.Sentinel.train(batches_of(9), F.cross_entropy))
        with pytest.raises(GateFailedError, match=r"shard/\d\.\d failed on Push"):
            training.wait(timeout=WAIT_S)


def test_a_part_that_is_lost_ends_the_session():
    engine = ak.Simulator(
        compute=Compute({"*": Cost(message_s=0.01)}), faults=[Crash(who="shard/1.2", at_s=0.3)]
    )
    with ak.run(downpour(replicas=2), engine=engine) as session:
        session.attach(ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_updates=2))
        session.attach(ak.Sentinel.train(batches_of(90), F.cross_entropy))
        with pytest.raises(GateFailedError, match=r"shard/1\.2 is lost"):
            session.wait(timeout=1000)


# ── any order, any time ──────────────────────────────────────────────────────────────────────────────

WORLDS = st.fixed_dictionaries(
    {
        "replicas": st.integers(1, 4),
        "push_every": st.integers(1, 3),
        "fetch_every": st.none() | st.integers(1, 4),
        "fetch": st.sampled_from(["background", "wait"]),
        "local_step": st.booleans(),
        "steps_by_speed": st.booleans(),
        "warm_start": st.integers(0, 5),
        "max_staleness": st.none() | st.integers(0, 3),
        "max_shard_bytes": st.sampled_from([TENSOR, 70, 250]),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(WORLDS, st.integers(0, 10**6), st.integers(1, 4), st.none() | st.integers(0, 40))
def test_in_any_world_batches_and_pushes_are_conserved_and_nothing_hangs(world, seed, in_flight, crash):
    engine = ak.Simulator(
        seed,
        links=Link(Exponential(0.02)),
        compute=Compute({"*": Cost(message_s=0.01)}, slowdowns=[Slowdown("shard/*.1", 5.0)]),
        faults=[] if crash is None else [Crash(who="replica/0/gate/1", at_s=0.05 * crash)],
    )
    with ak.run(downpour(**world), engine=engine) as session:
        for every in (3, 4):
            validate = ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_updates=every)
            session.attach(validate)
        training = session.attach(ak.Sentinel.train(batches_of(12), F.cross_entropy, in_flight=in_flight))
        with contextlib.suppress(GateFailedError):
            session.wait(timeout=1000)
        check_batches_are_conserved(training, may_refuse=world["max_staleness"] is not None)
        engine.wait_until(lambda: False, 100)
        shards = session.status(timeout=1000).gates
        check_pushes_are_conserved(shards, world["max_staleness"])
        if world["max_staleness"] is None and crash is None and not world["steps_by_speed"]:
            assert {shard.version for shard in shards} == {pushes_due(training, world["push_every"])}
        for address, cell in engine._cells.items():
            role = getattr(cell.actor, "role", None)
            if isinstance(role, FrontRole):
                assert not role._waiting, address


@pytest.mark.parametrize("engine", LOCAL)
@pytest.mark.parametrize("push", ["gradients", "differences"])
def test_a_record_is_replayed_to_the_same_bits(engine, push, tmp_path):
    both = {"compression": "int8", "fetch_compression": "int8"}
    recipe = downpour(replicas=3, push_every=2, push=push, **both)
    check_replays_to_the_same_bits(recipe, ENGINES[engine](), tmp_path)


def test_the_simulator_gives_the_same_bits_for_the_same_seed():
    check_a_seed_decides_the_bits(lambda: downpour(small_network(), replicas=3))
