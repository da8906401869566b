"""A session whose process is silent, stopped or busy, while the registrar of its network is made anew."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from tests.engines.test_ray_orphans import BACK, kill
from tests.engines.test_ray_rows import goes_on, ray_get, running, training
from tests.support.harness import WAIT_S
from tests.support.registrars import registrars

import akkordeon as ak

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SILENT_S = 16.0
"""Longer than a registrar that is made anew waits for answers."""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    from tests.support.warm import start_cluster

    start_cluster()


def test_its_sentinels_are_known_again_and_go_on_when_a_gate_comes_back(monkeypatch):
    """The registrar took it for one without sentinels: gates that came back later told them nothing."""
    from akkordeon.engines.ray import detached
    from akkordeon.engines.ray.host_pool import SESSION_HOST

    others = registrars()
    with (
        running(monkeypatch, "silent", BACK) as address,
        ak.connect(f"{address}/silent") as session,
    ):
        attached, wait_until = session.attach(training("a", 10**6)), session._engine.wait_until
        assert goes_on(session, attached)
        (registrar,) = registrars(others)
        _, pid = ray_get(session._engine._pool.hosts[SESSION_HOST].location)
        os.kill(pid, signal.SIGSTOP)
        try:
            kill(registrar)
            threading.Event().wait(SILENT_S)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert goes_on(session, attached)

        def known():
            return [sentinel.name for sentinel in detached.status(address, "silent").sentinels]

        assert wait_until(lambda: known() == ["a"], WAIT_S)
        wait_until(lambda: False, 30.0)  # until then the session tells of gates by itself
        os.kill(session._engine.locations()["gate/1"][1], signal.SIGKILL)
        wait_until(lambda: False, 5.0)
        assert goes_on(session, attached)
