"""Detached networks: start one, look at all, stop one; and the ways to their registrars."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import ray
import torch

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import ClusterError, NameTakenError, explain
from akkordeon.core.plain_state import StageState
from akkordeon.engines.ray.cluster.actor_options import UNRECORDED, detached_as, on_this_node
from akkordeon.engines.ray.cluster.names import end_named, hosts_of, named, named_actors
from akkordeon.engines.ray.cluster.waits import ANSWER_S, ask, end_actor
from akkordeon.engines.ray.host_pool import READY_S, HostPool
from akkordeon.engines.ray.network_info import NetworkInfo, NetworkStatus
from akkordeon.engines.ray.placement import Placement, check_row
from akkordeon.engines.ray.registrar import Registrar
from akkordeon.engines.ray.serialization import deserialize, pickle_by_value, serialize
from akkordeon.engines.ray.snapshots import WEIGHTS_S, NetworkWeights

__all__ = [
    "answer",
    "detach",
    "info_of",
    "names",
    "raise_refusal",
    "recipe",
    "recipe_of",
    "registrar_of",
    "start",
    "status",
    "stop",
    "unsaved",
    "wait_for_machines",
    "weights",
    "weights_of",
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
    recovery: Callable[..., Any] | None = None,
    stages: Mapping[str, StageState] | None = None,
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
        recovery: makes what decides when gates come back, as a ``GateRecovery``; None lets none come back.
        stages: what the gates begin with, by address, where that is not the recipe's weights.

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
            placement,
            tuple(os.path.abspath(folder) for folder in sys.path),
            None if recovery is None else serialize(recovery),
            None if recovery is None or stages is None else serialize(stages),
            dict(description or {}),
        )
        answer(registrar.open.remote(info, registrar), READY_S)
    except BaseException:
        for handle in [*pool.hosts.values(), registrar]:
            end_actor(ray, handle)
        raise


def _end_leftovers(name: str) -> bool:
    """End what no registrar knows of; whether there was anything."""
    left = hosts_of(name)
    end_named(left)
    return bool(left)


def _new_registrar(name: str) -> Any:
    """A registrar, on this machine: others may leave the cluster."""
    options = {**UNRECORDED, "num_cpus": 0, **on_this_node(), **detached_as(PREFIX + name)}
    options |= {"concurrency_groups": {"control": 1, "surgery": 1}}
    options |= {"max_restarts": -1}  # where its process is killed; it knows again then what it knew
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
        registrar = registrar_of(address, name)
    except ClusterError:
        if _end_leftovers(name):
            return
        raise
    answer(registrar.end.remote("the network was stopped"))
    end_actor(ray, registrar)
    _end_leftovers(name)  # a gate that was being made anew may have come since


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────


def names() -> list[str]:
    """The networks of the cluster that this process is connected to."""
    return sorted(name.removeprefix(PREFIX) for name in named_actors() if name.startswith(PREFIX))


def status(address: str, name: str) -> NetworkStatus:
    """How a network is.

    Raises:
        ClusterError: there is none of that name.
    """
    found: NetworkStatus = answer(registrar_of(address, name).status.remote())
    return found


def weights(address: str, name: str) -> NetworkWeights:
    """The weights of a network as they are now; of one that has failed, the last that are known.

    Raises:
        ClusterError: there is no such network, or none of its weights are known.
    """
    return weights_of(registrar_of(address, name), name)


def weights_of(registrar: Any, name: str, timeout_s: float = WEIGHTS_S + ANSWER_S) -> NetworkWeights:
    """As :func:`weights`, where the registrar is known."""
    serialized = answer(registrar.weights.remote(), timeout_s)
    if serialized is None:
        raise ClusterError(f"of some gates of {name!r} no weights are known: they died before they gave any")
    snapshot: NetworkWeights = deserialize(serialized, writable=True)
    return snapshot


def unsaved(address: str, name: str) -> bool:
    """Whether a network was trained since somebody asked for its weights.

    Raises:
        ClusterError: there is none of that name.
    """
    return bool(answer(registrar_of(address, name).unsaved.remote()))


def recipe(address: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The network that was started, with the weights it began with, and how its task is made again.

    Raises:
        ClusterError: there is none of that name, or it cannot be read on this machine.
    """
    info = info_of(registrar_of(address, name), name)
    return recipe_of(info, name), info.description


def detach(address: str, name: str, sentinel: str, drop: bool = False) -> None:
    """Have a sentinel end, whoever attached it.

    Raises:
        NoSuchSentinelError: none of that name is at work.
        ClusterError: there is no such network.
    """
    refusal = answer(registrar_of(address, name).detach.remote(sentinel, drop))
    if refusal is not None:
        raise_refusal(refusal)


def registrar_of(address: str, name: str) -> Any:
    """The registrar of a network.

    Raises:
        ClusterError: there is none of that name.
    """
    try:
        return named(PREFIX + name)
    except ValueError as error:
        known = ", ".join(map(repr, names())) or "none"
        raise ClusterError(f"there is no network {name!r} at {address}; there are: {known}") from error


def answer(ref: Any, timeout_s: float | None = ANSWER_S) -> Any:
    """What a registrar, or a host, answers.

    Raises:
        ClusterError: it does not, or not in time.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the network does not answer: {' '.join(str(error).split())[-300:]}") from error


def raise_refusal(refusal: Any) -> NoReturn:
    """Raise the error that a registrar answered with."""
    error: BaseException = deserialize(refusal)
    raise error


def info_of(registrar: Any, name: str) -> NetworkInfo:
    """The way into a network.

    Raises:
        ClusterError: nobody can join it now.
    """
    info: NetworkInfo | None = answer(registrar.info.remote())
    if info is None:
        raise ClusterError(f"the network {name!r} is being started or stopped; try again")
    return info


def recipe_of(info: NetworkInfo, name: str) -> Any:
    """The network that was started.

    Raises:
        ClusterError: it cannot be read on this machine.
    """
    try:
        return deserialize(info.recipe, writable=True)
    except Exception as error:
        raise ClusterError(
            f"the recipe of {name!r} cannot be read on this machine: {explain(error)}"
        ) from error
