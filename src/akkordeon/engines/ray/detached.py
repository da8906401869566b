"""Detached networks: found one, join one as a session's engine, look at all, end one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import ClusterError, NameTakenError, explain
from akkordeon.engines.ray.connection import NAMESPACE, join
from akkordeon.engines.ray.engine import HOME, READY_S, UNRECORDED, Ray
from akkordeon.engines.ray.placement import Placement
from akkordeon.engines.ray.registrar import WEIGHTS_S, Keeper, Plan, Survey
from akkordeon.engines.ray.serialization import pack, ship_by_value, unpack
from akkordeon.engines.ray.snapshots import Kept

__all__ = [
    "Joined",
    "detach",
    "end",
    "found",
    "names",
    "recipe",
    "survey",
    "unsaved",
    "wait_for_machines",
    "weights",
]

PREFIX = "network/"

ANSWER_S = 10.0
"""How long a keeper may take to answer."""


def wait_for_machines(count: int) -> None:
    """Wait until so many machines are part of the cluster, for as long as it takes."""
    while sum(node["Alive"] for node in ray.nodes()) < count:  # type: ignore[no-untyped-call]
        time.sleep(0.5)


# ── founding and ending ──────────────────────────────────────────────────────────────────────────────


def found(
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
    ship_by_value()
    keeper = _new_keeper(name)
    founder = _Founder(name, seed, placement, wire_dtype)
    try:
        _end_leftovers(name)
        founder.spawn_all(spawns)
        who = founder._hosts, founder._where, founder._places
        plan = Plan(pack(network), seed, *who, wire_dtype, dict(description or {}))
        _answer(keeper.open.remote(plan, keeper), READY_S)
    except BaseException:
        for handle in [*founder._hosts.values(), keeper]:
            ray.kill(handle)
        raise


def _leftovers(name: str) -> list[str]:
    """Hosts of a network whose keeper was killed."""
    found = ray.util.list_named_actors(all_namespaces=True)
    ours = [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]
    return [host for host in ours if host.startswith(f"host/{name}/")]


def _end_leftovers(name: str) -> bool:
    """End what nobody keeps; whether there was anything."""
    left = _leftovers(name)
    for host in left:
        with suppress(ValueError):  # it ended by itself
            ray.kill(ray.get_actor(host, namespace=NAMESPACE))
    deadline_s = time.monotonic() + ANSWER_S
    while _leftovers(name) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return bool(left)


def _new_keeper(name: str) -> Any:
    """A keeper, on this machine: others may leave the cluster."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = {"concurrency_groups": {"desk": 1}}
    options = {**UNRECORDED, "num_cpus": 0, "scheduling_strategy": here, **desk, **_detached(PREFIX + name)}
    try:
        return ray.remote(**options)(Keeper).remote(name)
    except ValueError as error:
        raise NameTakenError(
            f"there is a network {name!r} here already; give this one another --name, or stop that one"
        ) from error


def _detached(name: str) -> dict[str, Any]:
    return {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}


class _Founder(Ray):
    """Makes hosts that outlive this process; there is no home, for no sentinel is here."""

    def __init__(self, name: str, seed: int, placement: Placement, wire_dtype: torch.dtype | None) -> None:
        super().__init__(placement=placement, wire_dtype=wire_dtype)
        self._name = name
        self._seed = seed

    def _options(self, name: str, needs: Mapping[str, float]) -> dict[str, Any]:
        return super()._options(name, needs) | _detached(f"host/{self._name}/{name}")


def end(address: str, name: str) -> None:
    """Stop a detached network.

    Raises:
        ClusterError: there is none of that name.
    """
    try:
        keeper = _keeper(address, name)
    except ClusterError:
        if _end_leftovers(name):
            return
        raise
    _answer(keeper.end.remote("the network was stopped"))
    ray.kill(keeper)


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────


def names() -> list[str]:
    """The networks of the cluster that this process is connected to."""
    found = ray.util.list_named_actors(all_namespaces=True)
    ours = [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]
    return sorted(name.removeprefix(PREFIX) for name in ours if name.startswith(PREFIX))


def survey(address: str, name: str) -> Survey:
    """How a network is.

    Raises:
        ClusterError: there is none of that name.
    """
    found: Survey = _answer(_keeper(address, name).survey.remote())
    return found


def weights(address: str, name: str) -> Kept:
    """The weights of a network as they are now; of one that has failed, the last that are known.

    Raises:
        ClusterError: there is no such network, or none of its weights are known.
    """
    found: Kept = _weights(_keeper(address, name), name)
    return found


def _weights(keeper: Any, name: str, timeout_s: float = WEIGHTS_S + ANSWER_S) -> Kept:
    parcel = _answer(keeper.weights.remote(), timeout_s)
    if parcel is None:
        raise ClusterError(f"of some gates of {name!r} no weights are known: they died before they gave any")
    kept: Kept = unpack(parcel, writable=True)
    return kept


def unsaved(address: str, name: str) -> bool:
    """Whether a network was trained since somebody asked for its weights.

    Raises:
        ClusterError: there is none of that name.
    """
    return bool(_answer(_keeper(address, name).unsaved.remote()))


def recipe(address: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The network that was founded, with the weights it began with, and how its task is made again.

    Raises:
        ClusterError: there is none of that name, or it cannot be read on this machine.
    """
    plan: Plan | None = _answer(_keeper(address, name).plan.remote())
    if plan is None:
        raise ClusterError(f"the network {name!r} is being started or stopped; try again")
    return _recipe(plan, name), plan.description


def detach(address: str, name: str, sentinel: str, drop: bool = False) -> None:
    """Have a sentinel end, whoever attached it.

    Raises:
        NoSuchSentinelError: none of that name is at work.
        ClusterError: there is no such network.
    """
    refusal = _answer(_keeper(address, name).detach.remote(sentinel, drop))
    if refusal is not None:
        _raise(refusal)


def _keeper(address: str, name: str) -> Any:
    try:
        return ray.get_actor(PREFIX + name, namespace=NAMESPACE)
    except ValueError as error:
        known = ", ".join(map(repr, names())) or "none"
        raise ClusterError(f"there is no network {name!r} at {address}; there are: {known}") from error


def _answer(ref: Any, timeout_s: float = ANSWER_S) -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the network does not answer: {' '.join(str(error).split())[:200]}") from error


def _raise(refusal: Any) -> NoReturn:
    error: BaseException = unpack(refusal)
    raise error


# ── joining ──────────────────────────────────────────────────────────────────────────────────────────


def _recipe(plan: Plan, name: str) -> Any:
    try:
        return unpack(plan.recipe, writable=True)
    except Exception as error:
        raise ClusterError(
            f"the recipe of {name!r} cannot be read on this machine: {explain(error)}"
        ) from error


class Joined(Ray):
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
            self._keeper = _keeper(address, name)
            failure = _answer(self._keeper.failure.remote())
            if failure is not None:
                raise ClusterError(f"the network {name!r} works no more: {failure}")
            plan: Plan | None = _answer(self._keeper.plan.remote())
            if plan is None:
                raise ClusterError(f"the network {name!r} is being started or stopped; try again")
            self.network: Any = _recipe(plan, name)
        except BaseException:
            self._undo()
            raise
        super().__init__(wire_dtype=plan.wire_dtype)  # on the cluster that was just joined
        self.seed = plan.seed
        self._name = name
        self._plan = plan

    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Make the home, and learn where the gates are."""
        with self._lock:
            self._hosts.update(self._plan.hosts)
            self._where.update(self._plan.where)
            self._places.update(self._plan.places)
        super().start(on_report, seed)

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """The gates are there; see that they and the home know each other."""
        self._settle_home()

    def _settle_home(self) -> None:
        super()._settle_home()
        home = self._hosts[HOME]
        _answer(home.keep.remote(self._keeper), READY_S)
        _answer(self._keeper.welcome.remote(self._key, home))

    def admit(self, name: str | None, role: str, answers: bool) -> tuple[str, int]:
        """A name that no other sentinel of the network has, and its number.

        Args:
            name: the one wanted; None takes one after the role.
            role: what the sentinel is for.
            answers: whether it is only a question, of whose end nobody needs to hear.

        Raises:
            NameTakenError: another has it.
        """
        where = self._where[HOME]
        answer = _answer(self._keeper.admit.remote(name, role, answers, self._key, self._hosts[HOME], where))
        if isinstance(answer[0], bytes):
            _raise(answer)
        return answer[0], answer[1]

    def dismiss(self, address: str) -> None:
        """A sentinel that was admitted did not come."""
        self._keeper.dismiss.remote(address)

    def detach(self, name: str, drop: bool) -> None:
        """Have a sentinel of another session end.

        Raises:
            NoSuchSentinelError: none of that name is at work.
        """
        refusal = _answer(self._keeper.detach.remote(name, drop))
        if refusal is not None:
            _raise(refusal)

    def last_states(self, timeout_s: float) -> Any:
        """The weights that the gates of a network that has failed had last.

        Raises:
            ClusterError: they are not known.
        """
        return _weights(self._keeper, self._name, timeout_s).states

    def _end_host(self, name: str, handle: Any) -> None:
        if name == HOME:
            with suppress(ClusterError):  # the network may have ended before us
                _answer(self._keeper.farewell.remote(self._key))
            super()._end_host(name, handle)

    def stop(self) -> None:
        """Leave; the network goes on."""
        super().stop()
        self._undo()
