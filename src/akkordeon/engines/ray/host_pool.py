"""The hosts of a network: processes that Ray makes, the actors shipped to them, and the routes between them.

Held by the engine of a session, by whoever starts a detached network, and by those who join one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from akkordeon.core.actor import Actor, Spawn
from akkordeon.core.errors import ClusterError, RecipeError
from akkordeon.engines.ray.cluster.actor_options import UNRECORDED, detached_as, on_this_node, with_resources
from akkordeon.engines.ray.cluster.connection import require_ray
from akkordeon.engines.ray.cluster.names import SPARE
from akkordeon.engines.ray.cluster.waits import FETCH_S, ask, end_actor
from akkordeon.engines.ray.placement import Placement, host_of, is_replica, sum_of_resources

if TYPE_CHECKING:
    from akkordeon.engines.ray.hosts import HostProcess, Routes
    from akkordeon.engines.ray.serialization import Serialized

__all__ = ["READY_S", "SESSION_HOST", "HostPool", "can_be_spare", "shipped"]

SESSION_HOST = "session host"
"""The name of the host of a session's sentinels."""

READY_S = 60.0
"""How long a host may take to come up; one that waits for resources never does."""

WAIT_S = 0.5
"""How long one look at Ray takes; then it is seen whether the cluster is gone."""

ROUTES_S = 2.0
"""How long a sentinel's attaching waits for hosts to know the way to it; one that hangs learns it later."""

SPARE_S = 10.0
"""How long the spare process may take to answer, before another is made instead."""


class HostPool:
    """Processes by name, and which actor is in which. Its methods may be called from any thread.

    Args:
        seed: of torch's generators in the hosts.
        placement: see :class:`akkordeon.Ray`.
        wire_dtype: likewise.
        workers: likewise.
        network: name of the detached network whose hosts outlive this process; None ends them with it.

    Attributes:
        hosts: handles by name.
        locations: address of the node and number of the process, by name of the host.
        places: name of the host, by address of the actor.
        lost: why there is no cluster any more, if so.
        spare: a process that is ready to be the next host, where there is one.
        spans_max: hosts that are made keep so many of what their actors do.
    """

    def __init__(
        self,
        seed: int,
        *,
        placement: Placement = "spread",
        wire_dtype: torch.dtype | None = None,
        workers: int | None = None,
        network: str | None = None,
    ) -> None:
        self.hosts: dict[str, Any] = {}
        self.locations: dict[str, tuple[str, int]] = {}
        self.places: dict[str, str] = {}
        self.lost = ""
        self.spare: Any = None
        self.spans_max = 0
        self._seed = seed
        self._placement = placement
        self._wire_dtype = wire_dtype
        self._workers = workers
        self._network = network
        self._lock = threading.Lock()  # guards hosts, locations and places
        self._launching = threading.Lock()  # two actors that come back find one host
        self._foreign: set[str] = set()  # hosts that were here before, and stay
        self._leaving: set[str] = set()  # hosts to end when the last of their actors has gone

    def adopt(
        self, hosts: Mapping[str, Any], locations: Mapping[str, tuple[str, int]], places: Mapping[str, str]
    ) -> None:
        """Know hosts that others made, and that stay when this pool ends."""
        with self._lock:
            self.hosts.update(hosts)
            self.locations.update(locations)
            self.places.update(places)
            self._foreign |= hosts.keys()

    # ── making and ending hosts ──────────────────────────────────────────────────────────────────────

    def make(self, needed: Mapping[str, Mapping[str, float]]) -> None:
        """Make hosts, all at once, by name and with what they need; those that are there already stay.

        Raises:
            ClusterError: one does not come up.
            RecipeError: one needs what is no resource.
        """
        ray = require_ray()
        made: dict[str, Any] = {}
        try:
            with self._launching:
                for name, needs in needed.items():
                    if name not in self.hosts:
                        self.locations.pop(name, None)  # of one that is lost
                        made[name] = self.hosts[name] = self._taken(name, needs) or self._start(name, needs)
                there = dict(self.hosts)
            new = [name for name in (*needed, SESSION_HOST) if name in there and name not in self.locations]
            asked = [there[name].location.remote() for name in new]
            found = dict(zip(new, self.answers(asked, READY_S), strict=True))
        except BaseException as error:
            for name, handle in made.items():
                self.hosts.pop(name, None)
                self.end(name, handle)
            if not isinstance(error, ray.exceptions.GetTimeoutError | ray.exceptions.RayActorError):
                raise
            wishes = {name: dict(needs) for name, needs in needed.items() if needs} or "nothing special"
            came = "died" if isinstance(error, ray.exceptions.RayActorError) else f"took {READY_S:g} s"
            raise ClusterError(
                f"the cluster did not bring up {', '.join(new)}: a process {came}; what was asked for: "
                f"{wishes}; what there is: {ask(ray.available_resources, 'what there is')}"
            ) from error
        with self._lock:
            self.locations.update(found)

    def keep_spare(self, maker: Serialized) -> None:
        """Have a process that is ready when the next host is needed, and has imported what its actors are of.

        Args:
            maker: of such an actor.
        """
        with suppress(ClusterError), self._launching:  # all goes on without one
            if self.spare is None:
                self.spare = self._start(f"{SPARE}/{uuid.uuid4().hex[:8]}", {})
                self.spare.rehearse.remote(maker)

    def end_spare(self) -> None:
        """Need none any more."""
        spare, self.spare = self.spare, None
        if spare is not None:
            end_actor(require_ray(), spare)

    def _taken(self, name: str, needs: Mapping[str, float]) -> Any:
        """The spare process, if there is one and it will do; it is a host like the others then."""
        if self.spare is None or not can_be_spare(name, needs):
            return None
        ray, (spare, self.spare) = require_ray(), (self.spare, None)
        with suppress(ray.exceptions.RayError):  # it may have died, too
            ray.get(spare.become.remote(*self._seed_and_workers(name)), timeout=SPARE_S)
            return spare
        end_actor(ray, spare)
        return None

    def start_session_host(self) -> None:
        """Ask for a host of sentinels on this node; it comes up together with the first of the others."""
        self.hosts[SESSION_HOST] = self._start(SESSION_HOST, {})

    def _start(self, name: str, needs: Mapping[str, float]) -> Any:
        """Ask Ray for a process."""
        from akkordeon.engines.ray.hosts import HostProcess, SessionHost

        options: dict[str, Any] = {**UNRECORDED, "num_cpus": 0}
        if name == SESSION_HOST:
            kind: type[HostProcess] = SessionHost
            options |= on_this_node()
        else:
            kind = HostProcess
            options |= {**with_resources(needs), "scheduling_strategy": "SPREAD"}
        if self._network is not None:
            options |= detached_as(f"host/{self._network}/{name}")
        folders = [os.path.abspath(folder) for folder in sys.path]
        arguments = (*self._seed_and_workers(name), self._wire_dtype, folders, self.spans_max)
        try:
            return self._launch(name, kind, options, arguments)
        except ValueError as error:
            raise RecipeError(f"{name} cannot have the resources {dict(needs)}: {error}") from error

    def _seed_and_workers(self, name: str) -> tuple[int, int | None]:
        """What differs between hosts of one kind."""
        seed = (self._seed + zlib.crc32(name.encode())) % 2**63
        # The gates of a replica mostly wait for each other: a second worker would take turns with the first.
        return seed, self._workers or (1 if is_replica(name) else None)

    def _launch(
        self, name: str, kind: type[HostProcess], options: dict[str, Any], arguments: tuple[Any, ...]
    ) -> Any:
        """Have Ray begin a process."""
        make = require_ray().remote(**options)(kind).remote
        return ask(lambda: make(*arguments), f"a process for {name}", READY_S)

    def end(self, name: str, handle: Any) -> None:
        """End a process, unless it was here before."""
        if name not in self._foreign:
            end_actor(require_ray(), handle)

    def clear(self) -> None:
        """Know nobody any more."""
        with self._lock:
            for known in (self.hosts, self.locations, self.places):
                known.clear()

    def remove(self, name: str) -> tuple[tuple[str, int], list[str]]:
        """A host is gone: where it was, and the addresses of who was there."""
        with self._lock:
            self.hosts.pop(name, None)
            location = self.locations.pop(name, ("?", 0))
            gone = [address for address, host in self.places.items() if host == name]
            for address in gone:
                del self.places[address]
        return location, gone

    # ── actors ───────────────────────────────────────────────────────────────────────────────────────

    def spawn_all(self, spawns: Iterable[Spawn]) -> dict[str, str]:
        """Make the actors of a network, their hosts at once.

        Returns:
            The name of the host of each, by address.

        Raises:
            RecipeError: one cannot travel, or not be made.
            ClusterError: a host does not come up, or has died.
        """
        spawns = list(spawns)
        places = {spawn.address: self._host_of(spawn.address) for spawn in spawns}
        comes_back = any(s.restore and can_be_spare(places[s.address], s.resources) for s in spawns)
        self.make(
            {
                host: sum_of_resources(s.resources for s in spawns if places[s.address] == host)
                for host in places.values()
            }
        )
        makers: dict[str, Serialized] = {}
        for spawn in spawns:
            try:
                makers[spawn.address] = shipped(spawn.make)
            except TypeError as error:
                raise RecipeError(f"{spawn.address} cannot travel to its host: {error}") from error
        self.ship(places, makers)
        if comes_back:
            self.keep_spare(makers[spawns[-1].address])
        return places

    def _host_of(self, address: str) -> str:
        """The name of the host that an actor belongs to."""
        return host_of(address, self._placement)

    def place(self, places: Mapping[str, str]) -> None:
        """Know the hosts of these actors."""
        with self._lock:
            self.places.update(places)

    def ship(self, places: Mapping[str, str], makers: Mapping[str, Serialized]) -> None:
        """Have the hosts make actors; what making one raises, this raises."""
        from akkordeon.engines.ray.serialization import deserialize

        ray = require_ray()
        self.place(places)
        made = [self.hosts[places[address]].spawn.remote(address, maker) for address, maker in makers.items()]
        moving = ", ".join(makers)
        try:
            outcomes = self.answers(made, READY_S)
        except ray.exceptions.RayActorError as error:
            raise ClusterError(f"a host died while {moving} moved in: {error}") from error
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"no host took {moving} in within {READY_S:g} s") from error
        for outcome in outcomes:
            if outcome is not None:
                raise _as_told(deserialize(outcome), moving)

    def retire(self, addresses: Collection[str]) -> None:
        """These actors are no more: end the hosts that have nobody else, or as soon as they have nobody."""
        with self._lock:
            self._leaving |= {self.places[a] for a in addresses if a in self.places} - {SESSION_HOST}
            hosts = list(self.hosts.values())
        self._forget(set(addresses), hosts)

    def forget(self, addresses: Iterable[str]) -> None:
        """These sentinels and readers are no more; at their own host some may still tell the others so."""
        with self._lock:
            hosts = [handle for name, handle in self.hosts.items() if name != SESSION_HOST]
        self._forget(set(addresses), hosts)

    def _forget(self, gone: set[str], hosts: Iterable[Any]) -> None:
        with self._lock:
            for address in gone:
                self.places.pop(address, None)
        for handle in hosts:
            handle.remove_routes.remote(gone)
        with self._lock:
            empty = self._leaving - set(self.places.values())
            self._leaving -= empty
            ended = {name: self.hosts.pop(name) for name in empty & self.hosts.keys()}
        for name, handle in ended.items():
            self.end(name, handle)

    def actor_locations(self) -> dict[str, tuple[str, int]]:
        """Address of the node and number of the process of every actor."""
        with self._lock:
            return {a: self.locations[host] for a, host in self.places.items() if host in self.locations}

    # ── routes ───────────────────────────────────────────────────────────────────────────────────────

    def host_with(self, address: str) -> Any:
        """The handle of the host that an actor is in; None if there is none."""
        return self.hosts.get(self.places.get(address, ""))

    def tell_routes(
        self, places: Mapping[str, str], in_driver: Iterable[str] = (), also: Iterable[Any] = ()
    ) -> None:
        """Tell every host where these actors are, and new hosts where all are; wait until they know.

        Args:
            places: name of the host, by address.
            in_driver: addresses of actors in this process, which the others reach through the session host.
            also: other things that hosts were told, and that should be known too.
        """
        with self._lock:
            hosts, known = dict(self.hosts), dict(self.places)
        told = list(also)
        for name, handle in hosts.items():
            news = known if name in places.values() else places
            routes: Routes = {a: hosts[host] for a, host in news.items() if host != name and host in hosts}
            if name == SESSION_HOST:
                routes.update(dict.fromkeys(a for a in in_driver if a in news))
            told.append(handle.add_routes.remote(routes))
        with suppress(require_ray().exceptions.RayError):  # whoever waits for their heartbeat will say so
            self.answers(told, ROUTES_S)

    def answers(self, asked: Iterable[Any], timeout_s: float) -> list[Any]:
        """What hosts answer, all of them; every wait for Ray that a user waits for has this bound.

        Raises:
            ClusterError: the cluster is gone.
            ray.exceptions.GetTimeoutError: not all answers have come by then.
            ray.exceptions.RayActorError: somebody who was asked has died.
        """
        ray = require_ray()
        refs, deadline_s = list(asked), time.monotonic() + timeout_s
        left = refs
        while left:
            if self.lost:
                raise ClusterError(self.lost)
            if time.monotonic() >= deadline_s:
                raise ray.exceptions.GetTimeoutError(f"no answer within {timeout_s:g} s")
            patience_s = min(WAIT_S, max(0.0, deadline_s - time.monotonic()))
            _, left = ray.wait(left, num_returns=len(left), timeout=patience_s)
        return list(ray.get(refs, timeout=FETCH_S))


def can_be_spare(host: str, needs: Mapping[str, float] | None) -> bool:
    """Whether any process would do for a host."""
    return not needs and host != SESSION_HOST


def shipped(make: Callable[[], Actor]) -> Serialized:
    """What makes an actor, ready to travel.

    Raises:
        TypeError: it cannot.
    """
    from akkordeon.engines.ray.serialization import pickle_by_value, serialize

    pickle_by_value()
    return serialize(make)


def _as_told(error: BaseException, moving: str) -> BaseException:
    """What a host raised when it made an actor; what is missing there is not missing here."""
    if not isinstance(error, ModuleNotFoundError):
        return error
    told = RecipeError(
        f"{moving} cannot be made in another process: {error}. What a gate or a sentinel imports must be "
        "installed on every machine, or lie in a folder that is there under the same name"
    )
    told.__cause__ = error
    return told
