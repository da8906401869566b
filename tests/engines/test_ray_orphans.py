"""Processes of gates that came, went or were made anew when the registrar of their network was killed."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.engines.test_ray_rows import ROW, gate, goes_on, is_there, running, training
from tests.support.harness import WAIT_S
from tests.support.registrars import registrars
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import ClusterError, RecipeError

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

BACK = ak.Recovery(snapshot_every=5, backoff_s=0.1)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    from tests.support.warm import start_cluster

    start_cluster()


@dataclass(frozen=True)
class HeldUp:
    """Makes an optimizer once ``go`` lies in the folder; that it waits for it is told by ``came``."""

    folder: Path

    def __call__(self, parameters):
        while not (self.folder / "go").exists():
            (self.folder / "came").touch()
            threading.Event().wait(0.05)
        return torch.optim.SGD(parameters, 0.1)


def count(network):
    """How many processes a network has."""
    from akkordeon.engines.ray.cluster.names import hosts_of

    return len(hosts_of(network))


def kill(registrar):
    registrar.kill()
    registrar.wait(WAIT_S)


@pytest.mark.parametrize(("recovery", "spare"), [(None, 0), (BACK, 1)])
def test_no_process_is_left_of_gates_that_came_or_went_when_the_registrar_was_killed(
    recovery, spare, monkeypatch, tmp_path
):
    """It was there until the network ended; and where it had the name of a gate, none could come any more."""
    others = registrars()
    with (
        running(monkeypatch, "orphan", recovery) as address,
        ak.connect(f"{address}/orphan") as session,
        ThreadPoolExecutor(1) as pool,
    ):
        attached, wait_until = session.attach(training("a", 10**6)), session._engine.wait_until
        assert goes_on(session, attached)
        (registrar,) = registrars(others)
        late = ak.Gate(nn.Linear(6, 6), HeldUp(tmp_path))
        change = pool.submit(session.gate("gate/1").insert_after, late)
        assert wait_until((tmp_path / "came").exists, WAIT_S)
        kill(registrar)
        with pytest.raises(ClusterError, match="the network does not answer"):
            change.result(WAIT_S)
        assert wait_until(lambda: is_there(address, "orphan"), WAIT_S)
        (tmp_path / "go").touch()
        new = session.gate("gate/1").insert_after(gate(9), timeout=WAIT_S)
        assert session.network.row() == ("gate/0", "gate/1", new.address, "gate/2")
        new.remove(timeout=WAIT_S)  # its process stays for a while
        (registrar,) = registrars(others)
        kill(registrar)
        assert wait_until(lambda: is_there(address, "orphan"), WAIT_S)
        assert wait_until(lambda: count("orphan") == len(ROW) + spare, 2 * WAIT_S)
        assert goes_on(session, attached)
        assert session.network.row() == ROW


def test_a_gate_comes_back_though_the_registrar_was_killed_as_it_made_it_anew(monkeypatch, tmp_path):
    """The process of the one that did not come had the name of the next, and the network failed."""
    others = registrars()
    (tmp_path / "go").touch()
    held = ak.Gate(nn.Linear(6, 6), HeldUp(tmp_path), resources={"memory": 1e6})  # in no spare process
    with (
        running(monkeypatch, "twice", BACK, [gate(0), held, gate(2)]) as address,
        ak.connect(f"{address}/twice") as session,
    ):
        attached, wait_until = session.attach(training("a", 10**6)), session._engine.wait_until
        assert goes_on(session, attached)
        (registrar,) = registrars(others)
        (tmp_path / "go").unlink()
        os.kill(session._engine.locations()["gate/1"][1], signal.SIGKILL)
        assert wait_until((tmp_path / "came").exists, WAIT_S)
        kill(registrar)
        assert wait_until(lambda: is_there(address, "twice"), WAIT_S)
        (tmp_path / "go").touch()
        assert goes_on(session, attached)
        assert count("twice") == len(ROW) + 1


class CannotBeMade(torch.optim.SGD):
    def __init__(self, parameters):
        raise ZeroDivisionError("out of order")


def test_no_process_is_left_of_a_gate_that_cannot_be_made(monkeypatch):
    """It was there until the network ended."""
    with running(monkeypatch, "unmade") as address, ak.connect(f"{address}/unmade") as session:
        with pytest.raises(RecipeError, match="out of order"):
            session.gate("gate/1").insert_after(ak.Gate(nn.Linear(6, 6), CannotBeMade))
        assert session._engine.wait_until(lambda: count("unmade") == len(ROW), WAIT_S)
