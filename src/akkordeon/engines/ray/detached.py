"""Detached networks: start one, join one as a session's engine, look at all, stop one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import ray
import torch

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import ClusterError, NameTakenError, explain
from akkordeon.engines.ray.cluster.connection import NAMESPACE, join
from akkordeon.engines.ray.cluster.waits import ANSWER_S, ask, end_actor
from akkordeon.engines.ray.engine import Ray
from akkordeon.engines.ray.host_pool import (
    READY_S,
    SESSION_HOST,
    UNRECORDED,
    HostPool,
    detached_as,
    on_this_node,
)
from akkordeon.engines.ray.network_info import NetworkInfo, NetworkStatus
from akkordeon.engines.ray.placement import Placement, check_row
from akkordeon.engines.ray.registrar import WEIGHTS_S, Registrar
from akkordeon.engines.ray.serialization import deserialize, pickle_by_value, serialize
from akkordeon.engines.ray.snapshots import NetworkWeights

__all__ = [
    "JoinedEngine",
    "detach",
    "names",
    "recipe",
    "start",
    "status",
    "stop",
    "unsaved",
    "wait_for_machines",
    "weights",
]

PREFIX = "network/"


def wait_for_machines(count: int) -> None:
    """Wait until so many machines are part of the cluster, for as long as it takes and there is a cluster.

    Raises:
        ClusterError: its head does not answer.
    """
    while sum(node["Alive"] for node in ask(ray.nodes, "its machines")) < count:
        time.sleep(0.5)


# ── starting and stopping ─────────────────────────────────────────────────────────────────────────────


def start(
    name: str,
    network: Any,
    spawns: Iterable[Spawn],
    *,
    seed: int = 0,
    placement: Placement = "spread",
    wire_dtype: torch.dtype | None = None,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Start a detached network on the cluster that this process is connected to.

    Args:
        name: of the network.
        network: its recipe, for sessions that join.
        spawns: its gates.
        seed: see :func:`akkordeon.run`.
        placement: see :class:`Ray`.
        wire_dtype: likewise.
        description: how its task is made again, for those that keep its weights.

    Raises:
        NameTakenError: there is a network of that name.
        ClusterError: a host did not come up.
    """
    spawns = list(spawns)
    check_row((spawn.address for spawn in spawns), placement)
    pickle_by_value()
    registrar = _new_registrar(name)
    pool = HostPool(seed, placement=placement, wire_dtype=wire_dtype, network=name)
    try:
        _end_leftovers(name)
        pool.tell_routes(pool.spawn_all(spawns))
        info = NetworkInfo(
            serialize(network),
            seed,
            pool.hosts,
            pool.locations,
            pool.places,
            wire_dtype,
            dict(description or {}),
        )
        _answer(registrar.open.remote(info, registrar), READY_S)
    except BaseException:
        for handle in [*pool.hosts.values(), registrar]:
            end_actor(ray, handle)
        raise


def _leftovers(name: str) -> list[str]:
    """Hosts of a network whose registrar was killed."""
    return [actor for actor in _named_actors() if actor.startswith(f"host/{name}/")]


def _named_actors() -> list[str]:
    """The names of all of ours in the cluster."""
    found = ask(lambda: ray.util.list_named_actors(all_namespaces=True), "its networks")
    return [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]


def _end_leftovers(name: str) -> bool:
    """End what no registrar knows of; whether there was anything."""
    left = _leftovers(name)
    for host in left:
        with suppress(ValueError):  # it ended by itself
            end_actor(ray, _named(host))
    deadline_s = time.monotonic() + ANSWER_S
    while _leftovers(name) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return bool(left)


def _new_registrar(name: str) -> Any:
    """A registrar, on this machine: others may leave the cluster."""
    options = {**UNRECORDED, "num_cpus": 0, **on_this_node(), **detached_as(PREFIX + name)}
    try:
        make = ray.remote(**options)(Registrar).remote
        return ask(lambda: make(name), "a registrar", READY_S)
    except ValueError as error:
        raise NameTakenError(
            f"there is a network {name!r} here already; give this one another --name, or stop that one"
        ) from error


def stop(address: str, name: str) -> None:
    """Stop a detached network.

    Raises:
        ClusterError: there is none of that name.
    """
    try:
        registrar = _registrar(address, name)
    except ClusterError:
        if _end_leftovers(name):
            return
        raise
    _answer(registrar.end.remote("the network was stopped"))
    end_actor(ray, registrar)


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────


def names() -> list[str]:
    """The networks of the cluster that this process is connected to."""
    return sorted(name.removeprefix(PREFIX) for name in _named_actors() if name.startswith(PREFIX))


def status(address: str, name: str) -> NetworkStatus:
    """How a network is.

    Raises:
        ClusterError: there is none of that name.
    """
    found: NetworkStatus = _answer(_registrar(address, name).status.remote())
    return found


def weights(address: str, name: str) -> NetworkWeights:
    """The weights of a network as they are now; of one that has failed, the last that are known.

    Raises:
        ClusterError: there is no such network, or none of its weights are known.
    """
    return _weights(_registrar(address, name), name)


def _weights(registrar: Any, name: str, timeout_s: float = WEIGHTS_S + ANSWER_S) -> NetworkWeights:
    serialized = _answer(registrar.weights.remote(), timeout_s)
    if serialized is None:
        raise ClusterError(f"of some gates of {name!r} no weights are known: they died before they gave any")
    snapshot: NetworkWeights = deserialize(serialized, writable=True)
    return snapshot


def unsaved(address: str, name: str) -> bool:
    """Whether a network was trained since somebody asked for its weights.

    Raises:
        ClusterError: there is none of that name.
    """
    return bool(_answer(_registrar(address, name).unsaved.remote()))


def recipe(address: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The network that was started, with the weights it began with, and how its task is made again.

    Raises:
        ClusterError: there is none of that name, or it cannot be read on this machine.
    """
    info = _info(_registrar(address, name), name)
    return _recipe(info, name), info.description


def detach(address: str, name: str, sentinel: str, drop: bool = False) -> None:
    """Have a sentinel end, whoever attached it.

    Raises:
        NoSuchSentinelError: none of that name is at work.
        ClusterError: there is no such network.
    """
    refusal = _answer(_registrar(address, name).detach.remote(sentinel, drop))
    if refusal is not None:
        _raise(refusal)


def _registrar(address: str, name: str) -> Any:
    try:
        return _named(PREFIX + name)
    except ValueError as error:
        known = ", ".join(map(repr, names())) or "none"
        raise ClusterError(f"there is no network {name!r} at {address}; there are: {known}") from error


def _named(name: str) -> Any:
    """The actor of that name; ``ValueError`` if there is none."""
    return ask(lambda: ray.get_actor(name, namespace=NAMESPACE), f"{name!r}")


def _answer(ref: Any, timeout_s: float = ANSWER_S) -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the network does not answer: {' '.join(str(error).split())[:200]}") from error


def _raise(refusal: Any) -> NoReturn:
    error: BaseException = deserialize(refusal)
    raise error


# ── joining ──────────────────────────────────────────────────────────────────────────────────────────


def _info(registrar: Any, name: str) -> NetworkInfo:
    info: NetworkInfo | None = _answer(registrar.info.remote())
    if info is None:
        raise ClusterError(f"the network {name!r} is being started or stopped; try again")
    return info


def _recipe(info: NetworkInfo, name: str) -> Any:
    try:
        return deserialize(info.recipe, writable=True)
    except Exception as error:
        raise ClusterError(
            f"the recipe of {name!r} cannot be read on this machine: {explain(error)}"
        ) from error


class JoinedEngine(Ray):
    """The engine of a session that joined a network: the gates are there, and stay when it leaves.

    Args:
        address: HOST:PORT of the cluster; this machine belongs to it.
        name: of the network.

    Raises:
        ClusterError: there is no cluster, it does not let us in, or it has no such network.
    """

    def __init__(self, address: str, name: str) -> None:
        self._undo = join(address)
        try:
            self._registrar = _registrar(address, name)
            failure = _answer(self._registrar.failure.remote())
            if failure is not None:
                raise ClusterError(f"the network {name!r} works no more: {failure}")
            info = _info(self._registrar, name)
            self.network: Any = _recipe(info, name)
        except BaseException:
            self._undo()
            raise
        super().__init__(wire_dtype=info.wire_dtype)  # on the cluster that was just joined
        self.seed = info.seed
        self._name = name
        self._info = info

    def _new_pool(self, seed: int) -> HostPool:
        pool = super()._new_pool(seed)
        pool.adopt(self._info.hosts, self._info.locations, self._info.places)
        return pool

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """The gates are there; see that they and the session host know each other."""
        self._settle_session_host()

    def _settle_session_host(self) -> None:
        super()._settle_session_host()
        session_host = self._pool.hosts[SESSION_HOST]
        _answer(session_host.set_registrar.remote(self._registrar), READY_S)
        _answer(self._registrar.register_session.remote(self._key, session_host))

    def register_sentinel(self, name: str | None, role: str, answers: bool) -> tuple[str, int]:
        """A name that no other sentinel of the network has, and its number.

        Args:
            name: the one wanted; None takes one after the role.
            role: what the sentinel is for.
            answers: whether it is only a question, of whose end nobody needs to hear.

        Raises:
            NameTakenError: another has it.
        """
        session_host, location = self._pool.hosts[SESSION_HOST], self._pool.locations[SESSION_HOST]
        what = name, role, answers, self._key, session_host, location
        answer = _answer(self._registrar.register_sentinel.remote(*what))
        if isinstance(answer[0], bytes):
            _raise(answer)
        return answer[0], answer[1]

    def unregister_sentinel(self, address: str) -> None:
        """A sentinel that was registered did not come."""
        self._registrar.unregister_sentinel.remote(address)

    def detach(self, name: str, drop: bool) -> None:
        """Have a sentinel of another session end.

        Raises:
            NoSuchSentinelError: none of that name is at work.
        """
        refusal = _answer(self._registrar.detach.remote(name, drop))
        if refusal is not None:
            _raise(refusal)

    def last_states(self, timeout_s: float) -> Any:
        """The weights that the gates of a network that has failed had last.

        Raises:
            ClusterError: they are not known.
        """
        return _weights(self._registrar, self._name, timeout_s).states

    def _end_host(self, name: str, handle: Any) -> None:
        if name == SESSION_HOST:
            with suppress(ClusterError):  # the network may have ended before us
                _answer(self._registrar.unregister_session.remote(self._key))
        super()._end_host(name, handle)

    def stop(self) -> None:
        """Leave; the network goes on."""
        super().stop()
        self._undo()
