"""The pool of hosts: who is told which way, and when a host is ended. Without a cluster."""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.engines import Scripted

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import ClusterError, RecipeError
from akkordeon.engines.ray import host_pool
from akkordeon.engines.ray.host_pool import SESSION_HOST, HostPool

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")  # and with it cloudpickle


class FakeHost:
    """Answers at once, and keeps what it was told."""

    def __init__(self, name: str, told: list[Any]) -> None:
        def answering(what: str, answer: Any = None) -> Any:
            return SimpleNamespace(remote=lambda *args: (told.append((name, what, *args)), answer)[1])

        self.name = name
        self.rehearse = answering("rehearse")
        self.become = answering("become")
        self.location = answering("location", (f"node of {name}", 1))
        self.spawn = answering("spawn")
        self.add_routes = answering("add_routes")
        self.remove_routes = answering("remove_routes")


class FakeRay:
    """What the pool asks of Ray."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(
            RayError=Exception, RayActorError=ConnectionError, GetTimeoutError=TimeoutError
        )
        self.killed: list[str] = []

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return refs, []

    def get(self, refs: list[Any], timeout: float) -> list[Any]:
        return refs

    def kill(self, handle: FakeHost) -> None:
        self.killed.append(handle.name)


class FakePool(HostPool):
    def __init__(self, **options: Any) -> None:
        super().__init__(0, **options)
        self.told: list[Any] = []

    def _start(self, name: str, needs: Any) -> FakeHost:
        self.told.append((name, "start", dict(needs)))
        return FakeHost(name, self.told)

    def what(self, told: str) -> list[Any]:
        """What was told of one kind; that is forgotten then."""
        found = [(name, *args) for name, kind, *args in self.told if kind == told]
        self.told.clear()
        return found


@pytest.fixture
def ray(monkeypatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(host_pool, "require_ray", lambda: fake)
    return fake


def spawn(address: str, **resources: float) -> Spawn:
    return Spawn(address, partial(Scripted, address, None), resources)


def test_hosts_are_made_for_all_actors_with_what_those_of_each_need_together(ray):
    pool = FakePool(placement=[[0, 1], [2]])
    places = pool.spawn_all([spawn(f"gate/{i}", num_cpus=1.0) for i in range(3)])
    assert places == pool.places == {"gate/0": "gates/0+1", "gate/1": "gates/0+1", "gate/2": "gates/2"}
    assert pool.actor_locations()["gate/1"] == ("node of gates/0+1", 1)
    assert pool.what("start") == [("gates/0+1", {"num_cpus": 2.0}), ("gates/2", {"num_cpus": 1.0})]


def test_every_host_is_told_of_new_actors_and_a_new_host_of_all(ray):
    pool = FakePool()
    pool.start_session_host()
    pool.tell_routes(pool.spawn_all([spawn("gate/0")]))
    pool.told.clear()
    pool.tell_routes(pool.spawn_all([spawn("gate/1")]))
    first, second = pool.hosts["gate/0"], pool.hosts["gate/1"]
    assert pool.what("add_routes") == [
        (SESSION_HOST, {"gate/1": second}),
        ("gate/0", {"gate/1": second}),
        ("gate/1", {"gate/0": first}),
    ]


def test_an_actor_in_the_driver_is_reached_through_the_session_host(ray):
    pool = FakePool()
    pool.start_session_host()
    pool.spawn_all([spawn("gate/0")])
    pool.place({"reader/x": SESSION_HOST})
    pool.told.clear()
    pool.tell_routes({"reader/x": SESSION_HOST}, in_driver=["reader/x"])
    assert dict(pool.what("add_routes")) == {
        SESSION_HOST: {"gate/0": pool.hosts["gate/0"], "reader/x": None},
        "gate/0": {"reader/x": pool.hosts[SESSION_HOST]},
    }


def test_a_host_is_ended_when_the_last_of_its_actors_has_gone(ray):
    pool = FakePool()
    pool.spawn_all([spawn("replica/0/gate/0"), spawn("replica/0/gate/1"), spawn("gate/0")])
    pool.place({"sentinel/x": "replica/0"})
    pool.retire(["replica/0/gate/0", "replica/0/gate/1"])
    assert ray.killed == []
    pool.forget(["sentinel/x"])
    assert ray.killed == ["replica/0"]
    assert set(pool.hosts) == {"gate/0"}


def test_hosts_that_others_made_are_known_and_not_ended(ray):
    pool, told = FakePool(), []
    theirs = FakeHost("gate/0", told)
    pool.adopt({"gate/0": theirs}, {"gate/0": ("there", 7)}, {"gate/0": "gate/0"})
    pool.start_session_host()
    for name, handle in list(pool.hosts.items()):
        pool.end(name, handle)
    assert ray.killed == [SESSION_HOST]
    assert pool.remove("gate/0") == (("there", 7), ["gate/0"])
    assert pool.host_with("gate/0") is None


def test_what_cannot_travel_is_refused_by_name(ray):
    with pytest.raises(RecipeError, match="gate/0 cannot travel to its host: cannot pickle"):
        FakePool().spawn_all([Spawn("gate/0", partial(Scripted, "gate/0", (i for i in ())))])


def test_where_the_cluster_is_gone_nobody_is_waited_for(ray):
    pool = FakePool()
    pool.lost = "Ray does not answer"
    with pytest.raises(ClusterError, match="Ray does not answer"):
        pool.spawn_all([spawn("gate/0")])
    assert ray.killed == ["gate/0"]
    assert pool.hosts == {}


def test_a_gate_that_comes_back_moves_into_the_spare_process_and_another_is_begun(ray):
    """It waited some seconds for a process, while the others could do nothing."""
    pool = FakePool()
    gate = Spawn("gate/0", partial(Scripted, "gate/0", []), restore=lambda state: Scripted("gate/0", []))
    pool.spawn_all([gate])
    spare = pool.spare
    assert spare.name.startswith("spare/")
    pool.remove("gate/0")
    pool.spawn_all([gate])
    assert pool.hosts["gate/0"] is spare
    assert pool.spare.name.startswith("spare/")
    assert pool.spare is not spare


def test_a_replica_that_comes_back_moves_into_the_spare_process_which_has_one_worker_then(ray):
    """It waited for a new process, up to twenty seconds where all machines were busy."""
    pool = FakePool()
    gate = Spawn("replica/0/gate/0", partial(Scripted, "", []), restore=lambda state: Scripted("", []))
    pool.spawn_all([gate])
    spare = pool.spare
    pool.remove("replica/0")
    pool.told.clear()
    pool.spawn_all([gate])
    assert pool.hosts["replica/0"] is spare
    assert [(name, workers) for name, _, workers in pool.what("become")] == [(spare.name, 1)]


def test_gates_that_come_back_at_once_begin_one_spare_process(ray):
    begun = threading.Barrier(2)

    class Slow(FakePool):
        """Begins processes so slowly that another thread could begin one meanwhile."""

        def _start(self, name: str, needs: Any) -> FakeHost:
            with suppress(threading.BrokenBarrierError):
                begun.wait(0.2)
            return super()._start(name, needs)

    pool = Slow()
    threads = [threading.Thread(target=pool.keep_spare, args=(b"",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pool.what("start")) == 1


def test_no_process_is_kept_for_actors_that_do_not_come_back_or_need_more_than_any_has(ray):
    pool = FakePool()
    pool.spawn_all([Spawn("gate/0", partial(Scripted, "gate/0", []))])
    special = Spawn(
        "gate/1", partial(Scripted, "gate/1", []), {"fast": 1}, lambda state: Scripted("gate/1", [])
    )
    pool.spawn_all([special])
    assert pool.spare is None
