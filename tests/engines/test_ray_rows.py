"""Gates that come and go in a network that runs on its own, under sentinels of two sessions."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.support.harness import WAIT_S, sgd
from tests.support.registrars import registrars
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import ClusterError, RecipeError
from akkordeon.core.messages import Attach
from akkordeon.engines.ray.host_pool import SESSION_HOST

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


ROW = ("gate/0", "gate/1", "gate/2")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    from tests.support.warm import start_cluster

    start_cluster()


def gate(seed=0):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return ak.Gate(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), sgd)


def training(name, epochs, in_flight=4):
    generator = torch.Generator().manual_seed(1)
    data = [(x, x.argmax(1)) for x in torch.randn(10, 8, 6, generator=generator)]
    return ak.Sentinel.train(data, F.cross_entropy, in_flight=in_flight, epochs=epochs, name=name)


@contextlib.contextmanager
def running(monkeypatch, name, recovery=None, gates=None):
    """A network of three gates on the shared cluster; its target."""
    import ray

    from akkordeon.engines.ray import detached as networks
    from akkordeon.session.recovery.gates import GateRecovery

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    address = ray.get_runtime_context().gcs_address
    network = ak.Network(gates or [gate(seed) for seed in range(3)], recovery=recovery)
    comes_back = None if recovery is None else partial(GateRecovery, recovery)
    networks.start(name, network, network.spawns(0), recovery=comes_back)
    try:
        yield address
    finally:
        with contextlib.suppress(ClusterError):
            networks.stop(address, name)


def goes_on(session, attachment, epochs=2):
    done = attachment.epochs_done
    return session._engine.wait_until(lambda: attachment.epochs_done > done + epochs, WAIT_S)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_gates_come_and_go_and_sentinels_of_two_sessions_go_on(monkeypatch):
    from akkordeon.engines.ray import detached as networks

    back = ak.Recovery(snapshot_every=5, backoff_s=0.1)
    with (
        running(monkeypatch, "open", back) as address,
        ak.connect(f"{address}/open") as mine,
        ak.connect(f"{address}/open") as theirs,
    ):
        a = mine.attach(training("a", 10**6))
        b = theirs.attach(training("b", 10**6, in_flight=2))
        assert goes_on(mine, a)
        assert goes_on(theirs, b)
        new = mine.gate("gate/1").insert_after(gate(9))
        row = ("gate/0", "gate/1", "gate/3", "gate/2")
        assert (new.address, mine.network.row()) == ("gate/3", row)
        assert goes_on(mine, a)
        assert goes_on(theirs, b)
        assert theirs.network.row() == row
        assert networks.weights(address, "open").states.keys() == {*row}
        with ak.connect(f"{address}/open") as later:
            later.attach(training("c", 2)).wait(2 * WAIT_S)
            later.gate("gate/2").remove()
        row = row[:-1]
        assert goes_on(mine, a)
        assert goes_on(theirs, b)
        assert len(theirs.module()) == 3
        os.kill(mine._engine.locations()["gate/3"][1], signal.SIGKILL)  # it is the last, and has come
        assert goes_on(mine, a)
        assert goes_on(theirs, b)
        made, _ = networks.recipe(address, "open")
        kept = networks.weights(address, "open")
        assert tuple(kept.states) == made.row() == mine.network.row() == theirs.network.row() == row
        made.module(kept.states)
        for attached in (a, b):
            attached.detach()
            sent, trained, refused, lost = attached.wait(WAIT_S).batches.as_tuple()
            assert sent == trained + lost
            assert refused == 0
            assert lost <= 8  # were under way when the gate was killed
        assert networks.status(address, "open").failure is None


@pytest.mark.slow
def test_what_cannot_be_is_refused_and_a_network_without_recovery_changes_too(monkeypatch):
    with running(monkeypatch, "plain") as address, ak.connect(f"{address}/plain") as session:
        attached = session.attach(training("a", 10**6))
        with pytest.raises(RecipeError, match="a row is made of gates"):
            session.gate("gate/1").replace(nn.Linear(6, 6))
        session.gate("gate/1").replace(gate(9))
        with pytest.raises(RecipeError, match="called 'gate/1'"):
            session.gate("gate/1")
        assert session.network.row() == ("gate/0", "gate/3", "gate/2")
        assert goes_on(session, attached)
        attached.detach()
        sent, trained, _, _ = attached.wait(WAIT_S).batches.as_tuple()
        assert sent == trained


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_go_on_when_the_registrar_is_killed_while_sentinels_pause(monkeypatch, tmp_path):
    go = tmp_path / "go"

    def waiting(outputs, y):
        while not go.exists():
            threading.Event().wait(0.05)
        return F.cross_entropy(outputs, y)

    back = ak.Recovery(snapshot_every=5, backoff_s=0.1)
    with running(monkeypatch, "killed", back) as address, ak.connect(f"{address}/killed") as session:
        a = session.attach(training("a", 10**6))
        assert goes_on(session, a)
        with ak.connect(f"{address}/killed") as other, ThreadPoolExecutor(1) as pool:
            stuck = other.attach(replace(training("stuck", 10**6), loss=waiting))
            change = pool.submit(session.gate("gate/1").insert_after, gate(9))
            session._engine.wait_until(lambda: False, 3.0)  # a is at rest by then, and stuck is not
            done = a.epochs_done
            assert not session._engine.wait_until(lambda: a.epochs_done > done, 1.0)
            for process in registrars():
                process.kill()
            with pytest.raises(ClusterError, match="the network does not answer"):
                change.result(WAIT_S)
            assert goes_on(session, a)
            assert session.network.row() == ROW
            go.touch()
            assert goes_on(other, stuck)
            session.gate("gate/1").remove(timeout=WAIT_S)
            assert goes_on(session, a)
            assert goes_on(other, stuck)
            assert other.network.row() == ("gate/0", "gate/2")
            assert a.batches.refused == a.batches.lost == 0
            ends = partial(processes_are, "killed", 3)  # of two gates, and a spare one; not that of gate/3
            assert session._engine.wait_until(ends, WAIT_S)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_sentinel_that_begins_while_the_registrar_is_made_anew_does_not_keep_the_row(monkeypatch):
    """It was taken for one that has not begun, and the row could not be changed until it ended."""
    others = registrars()
    with (
        running(monkeypatch, "anew", ak.Recovery(snapshot_every=5, backoff_s=0.1)) as address,
        ak.connect(f"{address}/anew") as session,
        ak.connect(f"{address}/anew") as other,
    ):
        engine, begins, ends = session._engine, [], session.attach(training("ends", 10**6))
        theirs = other.attach(training("theirs", 10**6))
        assert goes_on(session, ends)
        assert goes_on(other, theirs)
        send = engine.send
        with monkeypatch.context() as held:
            held.setattr(engine, "send", lambda *what: begins.append(what))
            late = session.attach(training("late", 10**6))
        assert isinstance(begins[0][1], Attach)
        (registrar,) = registrars(others)
        _, pid = ray_get(other._engine._pool.hosts[SESSION_HOST].location)
        os.kill(pid, signal.SIGSTOP)  # the registrar that is made anew waits for it, once it knows of us
        try:
            registrar.kill()
            engine.wait_until(lambda: False, 6.0)  # it has asked us, and waits 10 s for the others
            assert not registrars(others)
            for what in begins:
                send(*what)
            assert goes_on(session, late)
            ends.detach()
            ends.wait(WAIT_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert engine.wait_until(partial(is_there, address, "anew"), WAIT_S)
        session.gate("gate/1").remove(timeout=20)
        assert goes_on(session, late)
        assert goes_on(other, theirs)


def is_there(address, name):
    from akkordeon.engines.ray import detached as networks

    with contextlib.suppress(ClusterError):
        return networks.status(address, name)


def processes_are(network, count):
    from akkordeon.engines.ray.cluster.names import hosts_of

    return len(hosts_of(network)) == count


def ray_get(method):
    import ray

    return ray.get(method.remote())
