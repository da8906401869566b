"""The simulator beyond what every engine promises: virtual time, cores, wires, faults, the same bits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.support.engines import Note, Stage
from tests.support.forks import python
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import After, Report, Send
from akkordeon.core.errors import GateFailedError, RecipeError, SentinelFailedError, StalledError
from akkordeon.core.reports import ActorLost, ActorReturned, Undelivered
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.distributions import Uniform
from akkordeon.engines.simulator.faults import Crash, Freeze, Partition
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import PRESETS, Ghost, Link, Links, Wire

SECOND = Compute({"worker*": Cost(message_s=1)})


@dataclass(frozen=True, slots=True)
class Parcel(Note):
    payload: Ghost


def tell_time(message, now_s):
    yield Report((message.text, now_s))


def stage_with(*addresses, script=tell_time, **world):
    stage = Stage(ak.Simulator(**world))
    for address in addresses:
        stage.actor(address, script)
    return stage


def told(stage):
    return [record for record in stage.records if isinstance(record, tuple)]


def let_pass(stage, seconds):
    stage.engine.wait_until(lambda: False, seconds)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_happens_while_nobody_waits():
    stage = stage_with("worker")
    stage.engine.send("worker", Note("a"))
    assert stage.records == []
    let_pass(stage, 0.0)
    assert stage.records == [("a", 0.0)]


def test_work_takes_virtual_time_and_one_message_comes_after_the_other():
    stage = stage_with("worker", compute=SECOND)
    for text in "abc":
        stage.engine.send("worker", Note(text))
    let_pass(stage, 10)
    assert told(stage) == [("a", 1.0), ("b", 2.0), ("c", 3.0)]
    assert stage.engine.loads()["worker"].busy_s == 3
    assert stage.engine.now_s() == 10


def test_actors_of_one_host_share_its_cores():
    hosts = [Host("machine", ["worker*"], cores=2)]
    stage = stage_with("worker/0", "worker/1", "worker/2", compute=SECOND, hosts=hosts)
    for i in range(3):
        stage.engine.send(f"worker/{i}", Note(i))
    let_pass(stage, 10)
    assert told(stage) == [(0, 1.0), (1, 1.0), (2, 2.0)]


def test_what_comes_after_the_effects_keeps_the_actor_but_not_others():
    """A gate updates after the gradient is on its way: the next gate works meanwhile."""
    compute = Compute({"a": Cost(table={"Note": (1.0, 5.0)}), "b": Cost(message_s=1)})
    stage = Stage(ak.Simulator(compute=compute))

    def pass_on(message, now_s):
        yield Send("b", message)

    stage.actor("a", pass_on)
    stage.actor("b", tell_time)
    stage.engine.send("a", Note("x"))
    stage.engine.send("a", Note("y"))
    let_pass(stage, 20)
    assert told(stage) == [("x", 2.0), ("y", 8.0)]


def test_a_wait_that_nothing_can_end_is_an_error_and_does_not_hang():
    stage = stage_with("worker")
    with pytest.raises(StalledError, match="nothing is left to happen"):
        stage.engine.wait_until(lambda: False, None)


def test_an_engine_at_work_takes_no_second_session():
    stage = stage_with()
    with pytest.raises(RecipeError, match="at work for another session"):
        stage.engine.start(lambda record: None, 0)


def test_messages_over_a_wire_arrive_later_and_in_order():
    stage = Stage(ak.Simulator(links=Link(Uniform(0.1, 5.0), bytes_per_s=100)))

    def chatter(message, now_s):
        for i in range(50):
            yield Send("listener", Note(i))

    stage.actor("listener", tell_time)
    stage.actor("chatter", chatter)
    stage.engine.send("chatter", Note("go"))
    let_pass(stage, 100)
    assert [i for i, _ in told(stage)] == list(range(50))
    times = [time_s for _, time_s in told(stage)]
    assert times == sorted(times)
    assert times[0] > 0.1
    ((here, there, wire),) = stage.engine.wires()
    assert (here, there, wire.messages) == ("chatter", "listener", 50)


@pytest.mark.parametrize("slow", ["sender/*", "receiver/*"])
def test_what_a_host_sends_and_what_it_is_sent_share_its_bandwidth(slow):
    """The middle gate of a row sends activations one way and gradients the other, through one link."""
    stage = Stage(ak.Simulator(hosts=[Host("slow", [slow], bytes_per_s=100.0)]))
    for i in range(2):
        stage.actor(f"receiver/{i}", tell_time)
        stage.actor(f"sender/{i}", lambda message, now_s, to=f"receiver/{i}": [Send(to, message)])
        stage.engine.send(f"sender/{i}", Parcel(i, Ghost(100)))
    let_pass(stage, 10)
    assert told(stage) == [(0, 1.0), (1, 2.0)]


def test_a_reader_lives_with_its_sentinel():
    """Else every batch would cross the network before it is sent."""
    network = ak.Network([ak.Gate(nn.Linear(2, 2), lambda params: torch.optim.SGD(params, lr=0.1))])
    with ak.run(network, ak.Simulator(links=Link(1.0))) as session:
        session.attach(ak.Sentinel.train([(torch.ones(1, 2), torch.tensor([0]))] * 3, F.cross_entropy))
        session.wait(timeout=1000)
        assert session.status().now_s == pytest.approx(3 * 4, abs=3)  # there and back, forward and backward


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_takes_the_mailbox_and_the_work_with_it():
    stage = stage_with("worker", compute=SECOND, faults=[Crash(who="worker", at_s=1.5, back_after_s=2)])
    for text in "abc":
        stage.engine.send("worker", Note(text))
    let_pass(stage, 3)
    stage.engine.send("worker", Note("lost"))
    let_pass(stage, 1)
    stage.engine.send("worker", Note("d"))
    let_pass(stage, 5)
    assert told(stage) == [("a", 1.0), ("d", 5.0)]
    kinds = [type(record) for record in stage.records if not isinstance(record, tuple)]
    assert kinds == [ActorLost, Undelivered, ActorReturned]


def test_what_is_on_its_way_to_a_crashed_actor_is_not_for_the_one_that_comes_back():
    faults = [Crash(who="listener", at_s=1, back_after_s=1)]
    stage = Stage(ak.Simulator(links=Link(5.0), faults=faults))
    stage.actor("listener", tell_time)
    stage.actor("sender", lambda message, now_s: iter([Send("listener", message)]))
    stage.engine.send("sender", Note("old"))
    let_pass(stage, 10)
    assert told(stage) == []
    (undelivered,) = [record for record in stage.records if isinstance(record, Undelivered)]
    assert undelivered.message.text == "old"


def test_a_host_crashes_as_one():
    hosts = [Host("machine", ["a", "b"])]
    stage = stage_with("a", "b", "c", hosts=hosts, faults=[Crash(who="machine", at_s=1)])
    let_pass(stage, 2)
    assert {record.address for record in stage.records} == {"a", "b"}
    assert stage.engine.loads().keys() == {"c"}


def test_crashes_at_a_rate_take_one_at_a_time():
    stage = stage_with(*"abcd", faults=[Crash(who="*", every_s=10, back_after_s=1)])
    let_pass(stage, 10_000)
    lost = [record.address for record in stage.records if isinstance(record, ActorLost)]
    assert len(lost) == pytest.approx(10_000 / 11, rel=0.1)
    assert all(lost.count(name) == pytest.approx(len(lost) / 4, rel=0.2) for name in "abcd")


def test_a_frozen_actor_goes_on_where_it_was():
    stage = stage_with("worker", compute=SECOND, faults=[Freeze(who="worker", at_s=0.5, for_s=10)])
    stage.engine.send("worker", Note("a"))
    stage.engine.send("worker", Note("b"))
    let_pass(stage, 100)
    assert told(stage) == [("a", 11.0), ("b", 12.0)]


def test_a_frozen_actor_leaves_its_core_to_others():
    hosts = [Host("machine", ["worker*"], cores=1)]
    faults = [Freeze(who="worker/0", at_s=0.0, for_s=10)]
    stage = stage_with("worker/0", "worker/1", compute=SECOND, hosts=hosts, faults=faults)
    let_pass(stage, 0.5)
    stage.engine.send("worker/0", Note("frozen"))
    stage.engine.send("worker/1", Note("fine"))
    let_pass(stage, 100)
    assert told(stage) == [("fine", 1.5), ("frozen", 11.0)]


def test_a_partition_keeps_messages_until_it_is_healed():
    faults = [Partition(one="sender", other="listener", at_s=0.0, heal_after_s=7.0)]
    stage = Stage(ak.Simulator(links=Link(1.0), faults=faults))
    stage.actor("listener", tell_time)
    stage.actor("sender", lambda message, now_s: iter([Send("listener", message)]))
    let_pass(stage, 1)
    for text in "ab":
        stage.engine.send("sender", Note(text))
    let_pass(stage, 20)
    assert told(stage) == [("a", 8.0), ("b", 8.0)]


def test_a_partition_keeps_the_order_of_messages_to_the_moment_it_is_healed():
    """Without links: what is sent as it heals must not overtake what has waited."""
    stage = Stage(
        ak.Simulator(faults=[Partition(one="sender", other="listener", at_s=1.0, heal_after_s=4.0)])
    )

    def every_second(message, now_s):
        yield Send("listener", message)
        yield After(1.0, Note(message.text + 1))

    stage.actor("listener", tell_time)
    stage.actor("sender", every_second)
    stage.engine.send("sender", Note(0))
    let_pass(stage, 9)
    assert told(stage) == [(0, 0.0), *((i, 5.0) for i in range(1, 6)), *((i, float(i)) for i in range(6, 10))]


def test_a_partition_of_a_host_from_all_others_does_not_cut_it_off_from_itself():
    """What was sent on the host waited, and when it was healed the next overtook it: a split cut was lost.

    World 1289 of the study of crashes with return (tests/support/chaos.py).
    """
    fault = Partition(one="rack", other="*", at_s=1.0, heal_after_s=4.0)
    hosts = [Host("rack", ["sender", "listener"])]
    stage = Stage(ak.Simulator(links=Link(1.0), faults=[fault], hosts=hosts))
    stage.actor("listener", tell_time)
    stage.actor("sender", lambda message, now_s: iter([Send("listener", message)]))
    let_pass(stage, 2)
    stage.engine.send("sender", Note("a"))
    let_pass(stage, 10)
    assert told(stage) == [("a", 2.0)]


def test_a_partition_longer_than_patience_costs_the_other_side():
    faults = [Partition(one="a", other="b", at_s=1.0, heal_after_s=100.0, patience_s=30.0)]
    stage = stage_with("a", "b", faults=faults)
    let_pass(stage, 200)
    (lost,) = stage.records
    assert (lost.address, lost.why) == ("b", "it was cut off for 30 s")


def repeating(again_s):
    """What a listener hears of one who says every second which it is, cut off from second 4.5 to 7.5."""
    fault = Partition(one="sender", other="listener", at_s=4.5, heal_after_s=3.0, again_s=again_s)
    stage = Stage(ak.Simulator(links=Link(0.25), faults=[fault]))

    def every_second(message, now_s):
        yield Send("listener", message)
        yield After(1.0, Note(message.text + 1))

    stage.actor("listener", tell_time)
    stage.actor("sender", every_second)
    stage.engine.send("sender", Note(0))
    let_pass(stage, 9)
    return stage


def test_what_was_not_acknowledged_when_a_link_broke_arrives_again_and_is_handled_once():
    stage = repeating(again_s=1000.0)
    assert 1 <= stage.engine.repeated() <= 5
    assert [text for text, _ in told(stage)] == list(range(9))
    assert repeating(again_s=1000.0).engine.repeated() == stage.engine.repeated()
    assert told(repeating(again_s=0.0)) == told(stage)


def test_what_arrives_again_comes_in_its_order_and_ahead_of_what_waits(monkeypatch):
    """As it would be if nobody dropped it."""
    monkeypatch.setattr(Wire, "is_new", lambda wire, shipment: True)
    heard = told(repeating(again_s=1000.0))
    again = [text for text, at_s in heard if at_s == 7.75][:-3]
    assert again == list(range(5))[-len(again) :]
    assert [text for text, _ in heard] == [0, 1, 2, 3, 4, *again, 5, 6, 7, 8]


def test_nothing_arrives_again_from_before_the_beginning():
    with pytest.raises(RecipeError, match="again_s is at least 0, got -1"):
        Partition(one="a", other="b", at_s=0.0, heal_after_s=1.0, again_s=-1)


@pytest.mark.parametrize("times", [{}, {"at_s": 1, "every_s": 1}, {"at_s": -1}, {"every_s": 0}])
def test_a_fault_has_a_time_or_a_rate(times):
    with pytest.raises(RecipeError):
        Crash(who="a", **times)


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────────


def network(gates=3):
    torch.manual_seed(0)
    momentum = lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9)  # noqa: E731
    return ak.Network(
        [
            ak.Gate(nn.Sequential(nn.Linear(6, 6), ak.nn.Dropout(0.2), nn.Tanh()), momentum)
            for _ in range(gates)
        ]
    )


def data(batches=30, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [(x, x.argmax(1)) for x in torch.randn(batches, 8, 6, generator=rng)]


def test_a_sentinel_that_crashes_fails_alone_and_leaves_nothing_in_the_gates():
    faults = [Crash(who="sentinel/doomed*", at_s=0.5)]
    engine = ak.Simulator(links=Link(0.01), compute=Compute({"gate/*": Cost(0.01, 0.02)}), faults=faults)
    with ak.run(network(), engine) as session:
        doomed = session.attach(ak.Sentinel.train(data(500), F.cross_entropy, in_flight=5, name="doomed"))
        fine = session.attach(ak.Sentinel.train(data(60), F.cross_entropy, name="fine"))
        with pytest.raises(SentinelFailedError, match="sentinel/doomed#1 is lost: it crashed"):
            doomed.wait(timeout=1000)
        fine.wait(timeout=1000)
        assert [gate.stashed for gate in session.status().gates] == [0, 0, 0]
    assert fine.batches.as_tuple() == (60, 60, 0, 0)


def test_a_reader_that_crashes_takes_its_sentinel_alone():
    engine = ak.Simulator(
        compute=Compute({"gate/*": Cost(0.01, 0.02)}), faults=[Crash(who="reader/a*", at_s=0.5)]
    )
    with ak.run(network(), engine) as session:
        a = session.attach(ak.Sentinel.train(data(500), F.cross_entropy, name="a"))
        b = session.attach(ak.Sentinel.train(data(), F.cross_entropy, name="b"))
        with pytest.raises(SentinelFailedError, match="reader/a#1 is lost"):
            a.wait(timeout=1000)
        b.wait(timeout=1000)
    sent, trained, refused, lost = a.batches.as_tuple()
    assert sent == trained + refused + lost


def test_a_gate_that_crashes_ends_the_session_with_an_error_that_names_it():
    engine = ak.Simulator(
        compute=Compute({"gate/*": Cost(0.01, 0.02)}), faults=[Crash(who="gate/1", at_s=0.3)]
    )
    with ak.run(network(), engine) as session:
        training = session.attach(ak.Sentinel.train(data(500), F.cross_entropy))
        with pytest.raises(GateFailedError, match="gate/1 is lost"):
            training.wait(timeout=1000)
        with pytest.raises(GateFailedError, match="gate/1 is lost"):
            session.module()
    sent, trained, refused, lost = training.batches.as_tuple()
    assert sent == trained + refused + lost
    assert lost > 0


def test_without_costs_the_simulator_is_deterministic_in_any_case():
    def states():
        with ak.run(network(), "simulator") as session:
            session.attach(ak.Sentinel.train(data(), F.cross_entropy, in_flight=4))
            session.wait(timeout=10)
        return session.states()

    first, second = states(), states()
    for gate in first:
        assert all(torch.equal(first[gate][name], second[gate][name]) for name in first[gate])


WORLD = """
import sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
from tests.engines.test_simulator import run_a_world
print(*run_a_world(int(sys.argv[2])))
"""


def run_a_world(seed):
    """Digests of the weights and of everything reported by a world in which much happens."""
    torch.set_num_threads(1)
    engine = ak.Simulator(
        seed,
        links=Links(PRESETS["zone"], [("sentinel/far*", "*", PRESETS["internet"])]),
        compute=Compute({"gate/*": Cost(0.01, 0.02, 0.001, 0.01)}, spread=Uniform(0.5, 2.0)),
        faults=[Freeze(who="gate/1", every_s=0.3, for_s=0.1), Crash(who="sentinel/doomed*", at_s=0.7)],
    )
    reported = hashlib.sha256()
    with ak.run(network(), engine, seed=seed) as session:
        session.subscribe(lambda record: reported.update(repr(record).encode()))
        session.attach(ak.Sentinel.train(data(60, 1), F.cross_entropy, in_flight=6, name="far"))
        session.attach(ak.Sentinel.train(data(60, 2), F.cross_entropy, in_flight=2, epochs=2, name="near"))
        session.attach(ak.Sentinel.train(data(60, 3), F.cross_entropy, name="doomed"))
        session.attach(ak.Sentinel.validate(data(3, 4), F.cross_entropy, every_s=0.2, name="judge"))
        with pytest.raises(SentinelFailedError):
            session.wait(timeout=100)
        reported.update(repr(session.status()).encode())
        weights = hashlib.sha256()
        for parameter in session.module().parameters():
            weights.update(parameter.detach().numpy().tobytes())
    return weights.hexdigest(), reported.hexdigest()


def test_the_same_seed_gives_the_same_bits_and_reports_in_two_processes():
    def elsewhere(seed):
        done = python(WORLD, Path(__file__).parents[2], seed)
        assert done.returncode == 0, done.stderr
        return tuple(done.stdout.split())

    here, other = run_a_world(1), run_a_world(2)
    assert elsewhere(1) == here
    assert here[0] != other[0]
    assert here[1] != other[1]


def test_timers_run_on_virtual_time():
    def ticker(message, now_s):
        yield Report((message.text, now_s))
        yield After(3600.0, Note(message.text + 1))

    stage = stage_with("ticker", script=ticker)
    stage.engine.send("ticker", Note(0))
    let_pass(stage, 10 * 3600.0)
    assert told(stage) == [(i, 3600.0 * i) for i in range(11)]
