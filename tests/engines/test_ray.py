"""The Ray engine, over processes that are its own; for what all engines promise see test_conformance.py."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from functools import partial

import httpx
import psutil
import pytest
import torch
from tests.support.engines import Note, Stage
from tests.support.forks import python
from tests.support.registrars import registrars
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import akkordeon as ak
from akkordeon.cli.main import app
from akkordeon.core.actor import Actor, Report, Send, Spawn
from akkordeon.core.errors import (
    ClusterError,
    GateFailedError,
    NameTakenError,
    RecipeError,
    SentinelFailedError,
    SessionError,
)
from akkordeon.core.reports import GateRestarted
from akkordeon.engines.ray import engine as ray_engine
from akkordeon.engines.ray.host_pool import SESSION_HOST

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    from tests.support.warm import start_cluster

    start_cluster()


@pytest.fixture
def warm():
    from tests.support.warm import WarmRay

    return WarmRay()


def lending(**options):
    """The engine as it places actors, in processes that were used before."""
    from tests.support.warm import LendingRay

    return LendingRay(**options)


@pytest.fixture
def lent_session_hosts(monkeypatch):
    """Sessions that join a network do so with processes that were used before."""
    from tests.support.warm import LendingPool

    monkeypatch.setattr(ray_engine, "HostPool", LendingPool)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def row(*modules):
    return ak.Network([ak.Gate(module, sgd) for module in modules])


def three_gates():
    return row(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), nn.Linear(16, 8), nn.Linear(8, 3))


def problem(batches=40):
    x = torch.randn(batches, 16, 6)
    return [(rows, rows[:, :3].argmax(1)) for rows in x]


class Endless(list):
    """Batches with pauses, so that what goes on meanwhile has the processor to itself."""

    def __iter__(self):
        for batch in super().__iter__():
            threading.Event().wait(0.01)
            yield batch

    def __getitem__(self, which):
        found = super().__getitem__(which)
        return Endless(found) if isinstance(which, slice) else found


# ── processes that die ───────────────────────────────────────────────────────────────────────────────


def test_killed_processes_are_told_of_and_nothing_hangs():
    """First that of the sentinels, then that of two of the gates."""
    engine = lending(placement=[[0], [1, 2]])
    with ak.run(three_gates(), engine=engine) as session:
        where = engine.locations()
        assert where["gate/1"] == where["gate/2"] != where["gate/0"]
        assert os.getpid() not in {pid for _, pid in where.values()}
        endless = session.attach(
            ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6, name="endless")
        )
        assert engine.wait_until(lambda: len(endless.epochs) > 1, 30)

        os.kill(engine._pool.locations[SESSION_HOST][1], signal.SIGKILL)
        with pytest.raises(SentinelFailedError, match="sentinel/endless#1 is lost"):
            endless.wait(timeout=10)
        again = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="again")).wait(timeout=30)
        assert again.batches.as_tuple() == (40, 40, 0, 0)
        assert [gate.stashed for gate in session.status(timeout=10).gates] == [0, 0, 0]

        done = endless.epochs_done
        endless.restart()
        assert engine.wait_until(lambda: endless.epochs_done > done + 1, 30)
        os.kill(where["gate/1"][1], signal.SIGKILL)
        with pytest.raises(GateFailedError, match=r"gate/[12] is lost: its process died \(number \d+"):
            endless.wait(timeout=10)
        with pytest.raises(GateFailedError):
            session.attach(ak.Sentinel.test(problem(), F.cross_entropy))


class Counts(nn.Module):
    """Counts in its weights how often it has learned from each sample, which are one-hot rows."""

    def __init__(self):
        super().__init__()
        self.times = nn.Parameter(torch.zeros(32))

    def forward(self, x):
        counted = x.detach() * self.times
        return x + counted - counted.detach()


def total(outputs, y):
    return outputs.sum()


@pytest.mark.slow
def test_a_sentinel_whose_process_was_killed_goes_on_at_its_exact_place():
    """It went on after the last epoch it had told of, and trained again what came after that."""
    epochs, engine = 10, lending()
    gates = [ak.Gate(Counts(), lambda p: torch.optim.SGD(p, lr=1.0)) for _ in range(2)]
    batches = ak.Batches(torch.eye(32), torch.arange(32), 1, shuffle=True)
    with ak.run(ak.Network(gates), engine=engine) as session:
        training = session.attach(ak.Sentinel.train(batches, total, epochs=epochs, in_flight=3))
        assert engine.wait_until(lambda: training.epochs_done > 1, 30)
        os.kill(engine._pool.locations[SESSION_HOST][1], signal.SIGKILL)
        with pytest.raises(SentinelFailedError, match="is lost"):
            training.wait(timeout=20)
        at = training.batches
        assert 0 < at.trained < epochs * 32
        assert at.in_flight == 0
        training.restart().wait(timeout=60)
        assert training.batches.as_tuple() == (epochs * 32, epochs * 32, 0, 0)
        states = session.states(timeout=30)
    for state in states.values():
        assert state["times"].tolist() == [-epochs] * 32


@pytest.mark.slow
def test_sentinels_whose_process_is_killed_go_on_by_themselves_at_their_exact_places():
    epochs, engine = 10, lending()
    gates = [ak.Gate(Counts(), lambda p: torch.optim.SGD(p, lr=1.0)) for _ in range(2)]
    batches = ak.Batches(torch.eye(32), torch.arange(32), 1, shuffle=True)
    with ak.run(ak.Network(gates), engine=engine) as session:
        options = {"report_every": 50, "on_failure": "restart"}
        streaming = session.attach(
            ak.Sentinel.stream((torch.eye(32).repeat(epochs, 1), torch.zeros(320)), total, **options)
        )
        training = session.attach(ak.Sentinel.train(batches, total, epochs=epochs, in_flight=3, **options))
        assert engine.wait_until(lambda: training.epochs_done > 1 and len(streaming.stream) > 0, 30)
        os.kill(engine._pool.locations[SESSION_HOST][1], signal.SIGKILL)
        session.wait(timeout=60)
        for attached in (training, streaming):
            assert attached.batches.as_tuple() == (epochs * 32, epochs * 32, 0, 0)
        states = session.states(timeout=30)
    for state in states.values():
        assert state["times"].tolist() == [-2 * epochs] * 32


def test_a_process_that_is_stopped_counts_as_lost_after_a_while(monkeypatch):
    """Nothing had a deadline: of a process that hung nobody was told, ever."""
    engine = lending()
    with ak.run(row(nn.Linear(6, 3)), engine=engine) as session:
        training = session.attach(ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6))
        assert engine.wait_until(lambda: training.epochs, 30)
        pid = engine.locations()["gate/0"][1]
        monkeypatch.setattr(ray_engine, "SILENT_S", 2.0)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(GateFailedError, match=r"gate/0 is lost: its process has not answered for 2 s"):
            training.wait(timeout=20)
        os.kill(pid, signal.SIGCONT)  # for those who use it next


class DeadCluster:
    """The answers of a cluster that has died, without a cluster that dies."""

    def __init__(self, node=True, head=True):
        self.node_answers, self.head_answers = lambda: node, lambda: head


@pytest.mark.slow
def test_gates_whose_processes_are_killed_come_back_in_others_while_training_goes_on():
    engine = lending()
    network = ak.Network(three_gates().gates, recovery=ak.Recovery(snapshot_every=10, backoff_s=0.1))
    with ak.run(network, engine=engine) as session:
        back = []
        session.subscribe(lambda r: back.append(r.address) if isinstance(r, GateRestarted) else None)
        training = session.attach(ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6))
        for gate in ("gate/1", "gate/0", "gate/2"):
            done, pid = training.epochs_done, engine.locations()[gate][1]
            assert engine.wait_until(lambda done=done: training.epochs_done > done + 1, 60)
            os.kill(pid, signal.SIGKILL)
            assert engine.wait_until(
                lambda gate=gate, pid=pid: engine.locations().get(gate, (None, pid))[1] != pid, 60
            )
        done = training.epochs_done
        assert engine.wait_until(lambda: training.epochs_done > done + 1, 60)
        training.detach()
        sent, trained, refused, lost = training.wait(timeout=30).batches.as_tuple()
        assert sent == trained + refused + lost
        assert refused == 0
    assert back == ["gate/1", "gate/0", "gate/2"]


def test_every_wait_ends_when_ray_dies_on_this_machine(warm, monkeypatch):
    """module(timeout=5) and close() waited in Ray for what had died."""
    monkeypatch.setattr(ray_engine, "CLUSTER_CHECK_S", 0.1)
    with ak.run(three_gates(), engine=warm) as session:
        training = session.attach(ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6))
        assert warm.wait_until(lambda: training.epochs, 30)
        host = warm._pool.host_with("gate/0")
        warm._cluster = DeadCluster(node=False)
        with pytest.raises(GateFailedError, match=r"is lost: Ray's process on this machine .* has died"):
            training.wait(timeout=10)
        with pytest.raises(GateFailedError):
            session.module(timeout=5)
        with pytest.raises(ClusterError, match="has died"):
            warm._pool.answers([host.heartbeat.remote()], 60)


def test_a_head_that_is_away_ends_the_session_before_ray_ends_the_process(warm, monkeypatch):
    """Ray ends the user's process after a minute, without finally: what was trained was gone."""
    monkeypatch.setattr(ray_engine, "CLUSTER_CHECK_S", 0.1)
    monkeypatch.setattr(ray_engine, "HEAD_S", 0.3)
    with ak.run(three_gates(), engine=warm) as session:
        training = session.attach(ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6))
        assert warm.wait_until(lambda: training.epochs, 30)
        warm._cluster = DeadCluster(head=False)
        with pytest.raises(GateFailedError, match=r"the head of the Ray cluster has not answered for 0.3 s"):
            training.wait(timeout=10)
        assert len(session.module(timeout=10)) == 3  # of the weights that the gates had last


def test_a_replica_that_is_killed_costs_its_own_work_alone_and_others_come_and_go():
    engine = lending()
    with ak.run(ak.Downpour(row(nn.Linear(6, 8), nn.Linear(8, 3)), replicas=2), engine=engine) as session:
        training = session.attach(
            ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6, name="t")
        )
        assert engine.wait_until(lambda: all(len(each.epochs) > 1 for each in training), 60)
        where = engine.locations()
        assert where["sentinel/t-1#1"] == where["replica/1/gate/0"] == where["replica/1/gate/1"]
        assert len({where["replica/0/gate/0"], where["replica/1/gate/0"], where["shard/0"]}) == 3

        os.kill(where["replica/1/gate/0"][1], signal.SIGKILL)
        with pytest.raises((GateFailedError, SentinelFailedError), match="is lost: its process died"):
            training[1].wait(timeout=10)
        assert engine.wait_until(lambda: session.replicas == (0,), 10)
        done = len(training[0].epochs)
        assert engine.wait_until(lambda: len(training[0].epochs) > done + 1, 30)

        third = session.add_replica()
        again = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="again", replica=third))
        assert again.wait(timeout=60).batches.as_tuple() == (40, 40, 0, 0)
        pid = engine.locations()[f"replica/{third}/gate/0"][1]
        session.remove_replica(third, timeout=30)
        assert ended(pid)
        training[0].detach()
        assert training[0].wait(timeout=30).batches.lost == 0
        assert session.predict(torch.randn(4, 6), timeout=30).shape == (4, 3)


def test_a_replica_that_fails_gives_its_process_back_and_a_new_one_gets_all_its_gates_need(
    monkeypatch,
):
    from tests.support.warm import LendingPool

    class Limited(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.left = nn.Linear(6, 3), 30

        def forward(self, x):
            self.left -= 1
            y = self.layer(x)
            if self.left < 0:
                y.register_hook(self.break_down)
            return y

        def break_down(self, gradient):
            raise RuntimeError("worn out")

    asked = {}
    engine = lending()
    start = LendingPool._start
    monkeypatch.setattr(
        LendingPool, "_start", lambda *what: asked.update({what[1]: dict(what[2])}) or start(*what)
    )

    gates = [ak.Gate(nn.Linear(6, 6), sgd, resources={"num_cpus": 0.1}), ak.Gate(Limited(), sgd)]
    gates.append(ak.Gate(nn.Linear(3, 3), sgd, resources={"num_cpus": 0.2}))
    with ak.run(ak.Downpour(ak.Network(gates), replicas=1), engine=engine) as session:
        pid = engine.locations()["replica/0/gate/0"][1]
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="t"))
        with pytest.raises(GateFailedError, match="worn out"):
            training.wait(timeout=30)
        assert ended(pid)
        session.add_replica()
    assert asked["replica/0"] == asked["replica/1"] == {"num_cpus": pytest.approx(0.3)}


# ── networks on their own, without the command line ──────────────────────────────────────────────────


@pytest.fixture(scope="module")
def orphan(cluster):
    """A network of the shared cluster, for several tests; the last stops it. How it is started again."""
    with pytest.MonkeyPatch.context() as patch, starting(patch, "orphan", row(nn.Linear(6, 3))) as (_, start):
        patch.undo()
        yield start


@pytest.fixture
def started(orphan, starting_at):
    """Its address, its name and how to start it again."""
    return starting_at, "orphan", orphan


@pytest.fixture
def started_row(monkeypatch):
    """Another, of two gates: its address and its name."""
    with starting(monkeypatch, "row", row(nn.Linear(6, 6), nn.Linear(6, 3))) as (address, _):
        yield address, "row"


@pytest.fixture
def starting_at(monkeypatch):
    """The address of the shared cluster, for networks."""
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return ray.get_runtime_context().gcs_address


@contextlib.contextmanager
def starting(monkeypatch, name, network, recovery=None):
    import ray

    from akkordeon.engines.ray import detached as networks

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    address = ray.get_runtime_context().gcs_address

    def start():
        networks.start(name, network, network.spawns(0), recovery=recovery)

    start()
    yield address, start
    with contextlib.suppress(ClusterError):
        networks.stop(address, name)


def test_a_registrar_that_was_killed_knows_again_what_it_knew(started, lent_session_hosts):
    """Sessions went on, but status said that there is no network, and nobody could join."""
    from akkordeon.engines.ray import detached as networks

    address, name, _ = started
    with ak.connect(f"{address}/{name}") as mine:
        training = mine.attach(
            ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6, name="t")
        )
        assert mine._engine.wait_until(lambda: training.epochs, 30)
        for process in registrars():
            process.kill()
        status = until_answered(lambda: networks.status(address, name))
        assert [(sentinel.name, sentinel.address) for sentinel in status.sentinels] == [("t", "sentinel/t#1")]
        assert "the registrar was killed" in status.events[0]
        assert status.failure is None
        done = training.epochs_done
        assert mine._engine.wait_until(lambda: training.epochs_done > done + 2, 30)

        with ak.connect(f"{address}/{name}") as theirs:
            with pytest.raises(NameTakenError, match="'t' is at work"):
                theirs.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="t"))
            another = theirs.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="another"))
            assert another.wait(timeout=60).batches.as_tuple() == (40, 40, 0, 0)
            theirs.detach("t")
            training.wait(timeout=30)
        assert networks.weights(address, name).versions["gate/0"] > 40
    assert theirs._engine.wait_until(lambda: not networks.status(address, name).sentinels, 10)


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(("gate/0",), id="one"),
        pytest.param(("gate/1", "gate/0"), id="one after the other", marks=pytest.mark.slow),
    ],
)
def test_a_gate_of_a_network_on_its_own_comes_back_and_sentinels_go_on(
    killed, monkeypatch, lent_session_hosts
):
    """A gate's process that was killed ended the network for good.

    Then sentinels had to leave the network and to join it again, which took five seconds, or ended.
    """
    from akkordeon.engines.ray import detached as networks
    from akkordeon.session.recovery.gates import GateRecovery

    network = ak.Network(
        row(nn.Linear(6, 6), nn.Linear(6, 3)).gates, recovery=ak.Recovery(snapshot_every=5, backoff_s=0.1)
    )
    recovery = partial(GateRecovery, network.recovery)
    with (
        starting(monkeypatch, "returning", network, recovery) as (address, _),
        ak.connect(f"{address}/returning") as session,
    ):
        training = session.attach(ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6))
        for gate in killed:
            done = training.epochs_done
            assert session._engine.wait_until(lambda done=done: training.epochs_done > done + 2, 60)
            os.kill(session._engine.locations()[gate][1], signal.SIGKILL)
            done = training.epochs_done
        assert session._engine.wait_until(lambda done=done: training.epochs_done > done + 2, 60)
        training.detach()
        sent, trained, refused, lost = training.wait(timeout=30).batches.as_tuple()
        status = networks.status(address, "returning")
        assert status.failure is None
        assert sum("it was made anew" in event for event in status.events) == len(killed)
        assert sent == trained + refused + lost
        versions = networks.weights(address, "returning").versions
        assert all(version >= trained - 10 for version in versions.values())  # what it learned is there


class BreaksAtTheFifth(torch.optim.SGD):
    """An optimizer that raises in its fifth step."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps == 5:
            raise ZeroDivisionError("out of order")
        return super().step(closure)


def test_a_gate_that_raises_once_too_often_ends_the_sessions_of_its_network(monkeypatch, lent_session_hosts):
    """The first time it ended those without patience; they went by what they saw, not by the registrar."""
    from akkordeon.session.recovery.gates import GateRecovery

    network = ak.Network(
        [ak.Gate(nn.Linear(6, 3), partial(BreaksAtTheFifth, lr=0.1))], recovery=ak.Recovery(restarts=1)
    )
    recovery = partial(GateRecovery, network.recovery)
    with (
        starting(monkeypatch, "raising", network, recovery) as (address, _),
        ak.connect(f"{address}/raising") as session,
    ):
        training = session.attach(ak.Sentinel.train(problem(20), F.cross_entropy))
        with pytest.raises(GateFailedError, match=r"gate/0 failed on .*out of order.*made anew 1 times"):
            session.wait(timeout=60)
        assert (
            training.batches.refused == 1
        )  # the batch that it raised on at first; those after it were learned from


@pytest.mark.slow
def test_a_gate_comes_back_with_what_it_had_learned_when_the_registrar_was_killed_before(
    monkeypatch, lent_session_hosts
):
    """The snapshots were the registrar's alone: a gate that was lost next had the weights of the recipe."""
    from akkordeon.engines.ray import detached as networks
    from akkordeon.session.recovery.gates import GateRecovery

    network = ak.Network(row(nn.Linear(6, 3)).gates, recovery=ak.Recovery(snapshot_every=10**6))
    recovery = partial(GateRecovery, network.recovery)
    with (
        starting(monkeypatch, "forgetful", network, recovery) as (address, _),
        ak.connect(f"{address}/forgetful", patience_s=60) as session,
    ):
        session.attach(ak.Sentinel.train(problem(), F.cross_entropy)).wait(timeout=30)
        learned = session.states(timeout=30)
        for process in registrars():
            process.kill()
        until_told(address, "forgetful", "a snapshot of gate/0 is kept again")
        os.kill(session._engine.locations()["gate/0"][1], signal.SIGKILL)
        until_told(address, "forgetful", "it was made anew")
        again = networks.weights(address, "forgetful").states
    assert torch.equal(again["gate/0"]["weight"], learned["gate/0"]["weight"])


def until_told(address, name, what):
    """Wait until a network tells of something among what has happened."""
    from akkordeon.engines.ray import detached as networks

    deadline_s = time.monotonic() + 60
    while not any(what in e for e in until_answered(lambda: networks.status(address, name)).events):
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.2)


def until_answered(ask):
    """The answer of an actor that is being made anew."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            return ask()
        except ClusterError:
            assert time.monotonic() < deadline_s
            threading.Event().wait(0.2)


def test_the_weights_of_a_network_can_be_had_when_a_gate_has_failed_or_is_lost(
    started_row, lent_session_hosts
):
    """They were gone with the first failure, though the other gates were alive."""
    from akkordeon.engines.ray import detached as networks

    address, name = started_row
    with ak.connect(f"{address}/{name}") as session:
        assert not networks.unsaved(address, name)
        session.attach(ak.Sentinel.train(problem(), F.cross_entropy)).wait(timeout=60)
        trained = session.states(timeout=30)
        kept = networks.weights(address, name)
        assert kept.versions == {"gate/0": 40, "gate/1": 40}
        assert kept.late == []
        assert same(kept.states, trained)
        assert not networks.unsaved(address, name)

        session.attach(ak.Sentinel.train(problem(3), F.cross_entropy)).wait(timeout=60)
        os.kill(session._engine.locations()["gate/1"][1], signal.SIGKILL)
        with pytest.raises(GateFailedError, match="gate/1 is lost"):
            session.attach(ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6)).wait(
                timeout=30
            )
        last = session.states(timeout=30)
        assert same({"gate/1": last["gate/1"]}, {"gate/1": trained["gate/1"]})
    kept = networks.weights(address, name)
    assert kept.versions["gate/0"] >= 43
    assert kept.versions["gate/1"] == 40
    assert kept.late == ["gate/1"]
    assert same(kept.states, last)


def test_a_network_says_of_a_gate_that_hangs_for_how_long_and_where(monkeypatch):
    """It said that it runs, with the last rate of a process that was stopped."""
    from akkordeon.engines.ray import registrar as registering
    from akkordeon.engines.ray.network_info import NetworkInfo

    registrar = registering.Registrar("net")
    places = {"gate/0": "host", "gate/1": "other"}
    registrar._info = NetworkInfo((b"", []), 0, {}, {"host": ("10.0.0.7", 42)}, places)
    registrar._heartbeats._since_s = {"host": time.monotonic() - 40.0, "other": time.monotonic()}
    sentence = "gate/0 has not answered for 30 s or more (number 42 on 10.0.0.7)"
    assert registrar.failure() == registrar.status().failure == sentence
    monkeypatch.setattr(registering, "SILENT_S", 50.0)
    assert registrar.failure() is registrar.status().failure is None


def test_who_waits_for_weights_is_told_when_a_gate_is_lost_meanwhile():
    """A session notices the loss of a gate a moment before its network does, and asked for a cut in vain."""
    from akkordeon.engines.ray.network_info import NetworkInfo
    from akkordeon.engines.ray.registrar import Registrar
    from akkordeon.engines.ray.snapshots import Snapshots

    asked, places = threading.Event(), {"gate/0": "host", "gate/1": "other"}
    registrar = Registrar("net")
    registrar._info = NetworkInfo((b"", []), 0, {}, {}, places)
    registrar._snapshots = Snapshots(tuple(places), lambda gate, message: asked.set())
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(registrar.weights()), daemon=True)
    waiting.start()
    assert asked.wait(10)
    registrar._fail("gate/1", "is lost")
    waiting.join(10)
    assert answers == [None]  # no gate ever gave any


def test_who_waits_for_a_cut_that_gave_way_to_a_later_one_has_the_later_one():
    from akkordeon.core.messages import Cut, CutId, Exported
    from akkordeon.engines.ray.snapshots import REGISTRAR, Snapshots

    snapshots = Snapshots(("gate/0",), lambda gate, message: None)
    first, second = snapshots.ask(), snapshots.ask()
    assert not snapshots.wait_for(first, 0.01)
    snapshots.hear(Cut(CutId(REGISTRAR, second), (7,)))
    snapshots.hear(Exported(CutId(REGISTRAR, second), "gate/0", {}))
    assert snapshots.wait_for(first, 10)
    assert snapshots.latest().versions == {"gate/0": 7}


def test_a_network_is_saved_and_another_starts_from_what_was_saved(starting_at, tmp_path, lent_session_hosts):
    from akkordeon.experiments.run_folder import WEIGHTS
    from akkordeon.experiments.safetensors_file import from_safetensors

    (tmp_path / "mine.py").write_text(RECIPE)
    recipe, first, second = f"{tmp_path}/mine.py:network", tmp_path / "first", tmp_path / "second"
    at = ("--listen", starting_at, "--placement", "pack", "--name")
    says("network", "start", recipe, *at, "saved")
    with ak.connect(f"{starting_at}/saved") as session:
        session.attach(ak.Sentinel.train(problem(), F.cross_entropy)).wait(timeout=60)
        trained = session.module(timeout=30)
    told = says("network", "stop", f"{starting_at}/saved", "--save", str(first))
    assert "updates behind them: gate/0 40, gate/1 40\n'saved' has ended\n" in told
    assert "is gone" not in told

    says("network", "start", recipe, *at, "saved", "--from", str(first))
    assert "gate/0 0, gate/1 0" in says("network", "save", f"{starting_at}/saved", str(second))
    network = row(nn.Linear(6, 6), nn.Linear(6, 3))
    loaded = from_safetensors((second / WEIGHTS).read_bytes(), network, second).module().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in trained.state_dict().items())

    with ak.connect(f"{starting_at}/saved") as session:
        session.attach(ak.Sentinel.train(problem(1), F.cross_entropy)).wait(timeout=60)
    told = says("network", "stop", f"{starting_at}/saved")
    assert "what it learned since its weights were saved last is gone" in told


RECIPE = """
import torch
from torch import nn
import akkordeon as ak

def sgd(params):
    return torch.optim.SGD(params, lr=0.1)

def network():
    return ak.Network([ak.Gate(nn.Linear(6, 6), sgd), ak.Gate(nn.Linear(6, 3), sgd)])
"""


def says(*command):
    """What a command says that succeeds."""
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return done.output


def same(states, others):
    return states.keys() == others.keys() and all(
        torch.equal(tensor, others[gate][name])
        for gate, state in states.items()
        for name, tensor in state.items()
    )


def test_a_sentinel_that_has_ended_does_not_end_another_sessions_of_its_name(started, lent_session_hosts):
    from akkordeon.engines.ray import detached as networks

    address, name, _ = started
    with ak.connect(f"{address}/{name}") as mine, ak.connect(f"{address}/{name}") as theirs:
        first = mine.attach(ak.Sentinel.train(problem(), F.cross_entropy, name="t")).wait(timeout=60)
        assert theirs._engine.wait_until(lambda: not networks.status(address, name).sentinels, 10)
        second = theirs.attach(
            ak.Sentinel.train(Endless(problem(10)), F.cross_entropy, epochs=10**6, name="t")
        )
        first.detach()
        assert theirs._engine.wait_until(lambda: len(second.epochs) > 5, 30)
        mine.detach("t")  # by name it is the network's
        assert second.wait(timeout=30).batches.lost == 0


@pytest.mark.slow
def test_a_sentinel_of_a_network_on_its_own_that_failed_goes_on_after_the_batch(started, lent_session_hosts):
    address, name, _ = started
    batches = problem(10)
    batches[4] = batches[4][0], torch.full((16,), 99)
    with ak.connect(f"{address}/{name}") as session:
        training = session.attach(ak.Sentinel.train(batches, F.cross_entropy, name="t"))
        with pytest.raises(SentinelFailedError, match="99 is out of bounds"):
            training.wait(timeout=60)
        assert training.restart().wait(timeout=60).batches.as_tuple() == (10, 9, 0, 1)


def test_a_network_on_its_own_is_served_while_another_session_trains_it(started, lent_session_hosts):
    address, name, _ = started
    x = problem(1)[0][0]
    with ak.connect(f"{address}/{name}") as theirs, ak.connect(f"{address}/{name}") as mine:
        theirs.attach(ak.Sentinel.train(problem(10), F.cross_entropy)).wait(timeout=60)
        with mine.serve(port=0) as server:
            answer = httpx.post(f"{server.url}/predict", json={"inputs": x.tolist()}, timeout=60).json()
            assert answer["version"] >= 10
            assert torch.allclose(torch.tensor(answer["outputs"]), theirs.predict(x), atol=1e-6)


def test_a_network_whose_registrar_was_killed_can_be_stopped_and_started_again(started):
    import ray

    from akkordeon.engines.ray import detached as networks

    address, name, start = started
    ray.kill(networks.registrar_of(address, name))
    start()  # in the place of what was left
    ray.kill(networks.registrar_of(address, name))
    networks.stop(address, name)
    assert networks.hosts_of(name) == {}
    with pytest.raises(ClusterError, match="no network 'orphan'"):
        networks.stop(address, name)


def ended(pid):
    """Whether a process has ended, or does so soon."""
    try:
        psutil.Process(pid).wait(10)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


# ── what travels ─────────────────────────────────────────────────────────────────────────────────────


class Echo(Actor):
    """Passes everything on, and tells what it got."""

    def __init__(self, address, to=None):
        self.address, self.to = address, to

    def receive(self, message, now_s):
        if self.to:
            yield Send(self.to, message)
        else:
            number, payload = message.text
            yield Report((number, payload.sum().item(), payload.dtype))


def test_payloads_of_all_sizes_arrive_in_order_from_host_to_host(warm):
    """Small ones travel in the call, large ones through shared memory: none overtakes another."""
    stage = Stage(warm)
    places = {warm._pool._host_of(f"echo/{i}"): f"echo/{i}" for i in range(9)}
    first, second = sorted(places.values())
    warm.spawn(Spawn(first, lambda: Echo(first, second)))
    warm.spawn(Spawn(second, lambda: Echo(second)))
    sizes = [1, 500_000, 10, 50_000, 3] * 6
    for number, size in enumerate(sizes):
        warm.send(first, Note((number, torch.ones(size))))
    heard = stage.wait_for(len(sizes), tuple)
    warm.stop()
    assert heard == [(number, size, torch.float32) for number, size in enumerate(sizes)]


@pytest.mark.filterwarnings("error")
def test_a_module_that_works_in_place_spoils_nothing(warm):
    x = torch.randn(8, 6)
    network = row(nn.Linear(6, 50_000), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(50_000, 3)))
    expected = network.module()(x)
    with ak.run(network, engine=warm) as session:
        found = [session.predict(x, timeout=30) for _ in range(3)]
        batches = [(x, torch.randint(3, (8,)))] * 5
        training = session.attach(ak.Sentinel.train(batches, F.cross_entropy)).wait(timeout=30)
    assert all(torch.allclose(each, expected, atol=1e-5) for each in found)
    assert training.batches.trained == 5


def test_training_on_ray_with_one_batch_in_flight_gives_the_bits_of_threads(warm):
    batches = problem()
    states = []
    for engine in (ak.Threads(1), warm):
        torch.manual_seed(0)
        with ak.run(three_gates(), engine=engine) as session:
            session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1, epochs=2)).wait(60)
            states.append(session.states(timeout=20))
    for gate, state in states[0].items():
        assert all(torch.equal(state[name], states[1][gate][name]) for name in state)


@pytest.mark.parametrize(
    "wire_dtype", [torch.int8, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str
)
def test_activations_travel_in_fewer_bits_where_that_is_asked(warm, wire_dtype):
    warm.wire_dtype = wire_dtype
    with ak.run(three_gates(), engine=warm) as session:
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, epochs=3)).wait(timeout=30)
    assert training.batches.trained == 120
    assert training.epochs[-1].loss < training.epochs[0].loss


def test_labels_stay_in_the_home_and_sources_that_cannot_travel_in_this_process(warm):
    def source():
        yield from problem(10)

    with ak.run(three_gates(), engine=warm) as session:
        training = session.attach(ak.Sentinel.train(source(), F.cross_entropy, name="generator"))
        assert set(warm._local_addresses) <= {"reader/generator#1"}
        assert warm._local._reported is warm._reported  # two locks were taken in either order
        training.wait(timeout=30)
        assert training.batches.as_tuple() == (10, 10, 0, 0)


def test_a_downpour_trains_with_its_replicas_and_shards_in_hosts(warm):
    recipe = ak.Downpour(three_gates(), replicas=2, compression="int8", fetch_compression="int8")
    with ak.run(recipe, engine=warm) as session:
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, epochs=2)).wait(timeout=60)
        assert session.predict(torch.randn(4, 6), timeout=30).shape == (4, 3)
    assert training.batches.as_tuple() == (80, 80, 0, 0)


def test_parts_of_a_position_are_in_several_hosts_and_validators_see_all_of_them(warm):
    recipe = ak.Downpour(three_gates(), replicas=2, max_shard_bytes=500)
    assert recipe.row() == ("shard/0", "shard/1", "shard/1.1", "shard/1.2", "shard/2")
    with ak.run(recipe, engine=warm) as session:
        validator = session.attach(ak.Sentinel.validate(problem(5), F.cross_entropy, every_updates=20))
        training = session.attach(ak.Sentinel.train(problem(), F.cross_entropy, epochs=2))
        session.wait(timeout=60)
        assert training.batches.as_tuple() == (80, 80, 0, 0)
        assert validator.rounds[-1].loss < validator.rounds[0].loss
        x = torch.randn(4, 6)
        module = session.module(timeout=30)
        torch.testing.assert_close(session.predict(x, timeout=30), module.eval()(x))
        assert [shard.version for shard in session.status(timeout=30).gates] == [80] * 5
        assert len({warm.locations()[shard] for shard in ("shard/1", "shard/1.1", "shard/1.2")}) == 2


def test_modules_that_this_process_finds_are_found_by_hosts(monkeypatch, tmp_path):
    """Hosts did not look into the folders of sys.path that the user had added."""
    (tmp_path / "found_by_path.py").write_text("from torch import nn\nclass Doubled(nn.Linear): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import found_by_path

    with ak.run(row(found_by_path.Doubled(6, 3)), engine=lending()) as session:
        assert session.predict(torch.randn(4, 6), timeout=60).shape == (4, 3)


def test_a_module_that_hosts_do_not_find_is_told_of_in_a_sentence(warm, monkeypatch, tmp_path):
    (tmp_path / "known_here_alone.py").write_text("from torch import nn\nclass Own(nn.Linear): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import known_here_alone

    (tmp_path / "known_here_alone.py").unlink()

    with pytest.raises(RecipeError, match=r"gate/0 cannot be made in another process: No module named 'kno"):
        ak.run(row(known_here_alone.Own(6, 3)), engine=warm)


def test_a_gate_that_cannot_travel_is_refused_by_name(warm):
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.source = (i for i in range(3))

        def __deepcopy__(self, memo):
            return self

    with pytest.raises(RecipeError, match=r"gate/0 cannot travel to its host.*generator"):
        ak.run(row(Locked()), engine=warm)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────


def test_a_wire_dtype_that_nothing_is_narrowed_to_is_refused():
    with pytest.raises(RecipeError, match=r"torch.float16 or torch.int8, got torch.int16"):
        ak.Ray(wire_dtype=torch.int16)
    with pytest.raises(RecipeError, match="got 'bf16'"):
        ak.Ray(wire_dtype="bf16")


def test_resources_that_ray_does_not_take_are_refused(warm):
    wrong = ak.Network([ak.Gate(nn.Linear(6, 3), sgd, resources={"CPU": 1})])
    with pytest.raises(RecipeError, match=r"gate/0 cannot have the resources \{'CPU': 1"):
        ak.run(wrong, engine=ak.Ray())


def test_recording_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(SessionError, match="cannot record yet"):
        ak.run(three_gates(), engine=ak.Ray(), record=tmp_path / "r")


def test_another_cluster_than_the_one_this_process_is_in_is_refused():
    with pytest.raises(ClusterError, match="is connected to the Ray cluster at"):
        ak.run(three_gates(), engine=ak.Ray("192.0.2.77:25520"))


@pytest.mark.parametrize("target", ["nowhere", "127.0.0.1/net", "127.0.0.1:99999/net", "127.0.0.1:1"])
def test_a_target_of_the_wrong_form_is_refused(target):
    with pytest.raises(ClusterError, match="HOST:PORT"):
        ak.connect(target)


def test_without_ray_one_sentence_says_what_to_install():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import torch, akkordeon as ak\n"
        "try: ak.run(ak.Network([ak.Gate(torch.nn.Linear(1, 1))]), engine='ray')\n"
        "except ak.AkkordeonError as error: print(error)\n"
        "try: ak.connect('127.0.0.1:1/net')\n"
        "except ak.AkkordeonError as error: print(error)\n"
    )
    done = python(code)
    sentence = "this needs Ray, which is not installed: pip install 'akkordeon[ray]'\n"
    assert (done.returncode, done.stdout) == (0, 2 * sentence), done.stderr
