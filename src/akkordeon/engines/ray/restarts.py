"""Gates of a detached network made anew, in a process on a machine that lives. Runs in its registrar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from akkordeon.core.actor import Spawn
from akkordeon.core.addresses import reader_of
from akkordeon.core.messages import Message
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.reports import ActorFailed, ActorLost, GateLeft, GateStatus, SentinelEnded
from akkordeon.engines.ray.cluster.names import SPARE, hosts_of
from akkordeon.engines.ray.cluster.waits import end_actor
from akkordeon.engines.ray.host_pool import HostPool, can_be_spare, shipped
from akkordeon.engines.ray.members import Members
from akkordeon.engines.ray.network_info import NetworkInfo
from akkordeon.engines.ray.serialization import deserialize
from akkordeon.engines.ray.snapshots import REGISTRAR
from akkordeon.engines.timers import Timers

__all__ = ["RestartingEngine", "Restarts"]


class Restarts:
    """Has whoever decides when gates come back hear of what happens to them.

    Args:
        engine: makes them.
        members: the sessions of the network.
        info: the way in.
        send: carries a message to a gate.
        note: keeps a sentence for those who ask how the network is.
        give_up: is told the address of a gate that does not come back, and why.

    Attributes:
        decides: when gates come back.
        unsaved: gates whose snapshot was lost with whoever kept it, and that are to leave another.
    """

    def __init__(
        self,
        engine: RestartingEngine,
        members: Members,
        info: NetworkInfo,
        send: Callable[[str, Message], None],
        note: Callable[[str], None],
        give_up: Callable[[str, str], None],
    ) -> None:
        assert info.recovery is not None, "gates come back"
        self.unsaved: set[str] = set()
        self._note = note
        self._lock = engine.lock
        self._engine = engine
        self.decides = deserialize(info.recovery, writable=True)(
            tuple(info.places),
            self._engine,
            send=send,
            tell=lambda record: note(str(record)),
            talk_to=lambda address: [entry.address for entry in members.entries()],
            give_up=lambda address, why, error: give_up(address, why),
        )
        spawns = list(deserialize(info.recipe, writable=True).spawns(info.seed))
        stages = None if info.stages is None else deserialize(info.stages, writable=True)
        for _ in self.decides.keep(spawns, stages):
            pass
        self._engine.keep_spare(spawns)

    def stop(self) -> None:
        """Have none come back from now on."""
        self.decides.stop()
        self._engine.end_spare()

    def story(self, address: str) -> str:
        """How often a gate that does not come back was made anew, and why."""
        return str(self.decides.story(address))

    def changed(self, info: NetworkInfo) -> None:
        """Gates are as another recipe has them."""
        with self._lock:
            for spawn in deserialize(info.recipe, writable=True).spawns(info.seed):
                self.decides.changed(spawn)

    def hear(self, record: Any) -> bool:
        """Take note of a report; whether it is of a gate that comes back, and nobody else's business."""
        with self._lock:
            if isinstance(record, StageSaved):
                self.decides.saved(record)
                if record.address in self.unsaved:
                    self.unsaved.discard(record.address)
                    self._note(f"a snapshot of {record.address} is kept again")
                return True
            if isinstance(record, GateStatus):
                self.decides.heard(record.address, record.version)
            elif isinstance(record, SentinelEnded):
                self.decides.departed(record.address)
            if isinstance(record, ActorFailed):
                return bool(self.decides.failed(record))
            if isinstance(record, GateLeft):
                return bool(self.decides.left(record))
            return isinstance(record, ActorLost) and bool(self.decides.lost(record))


class RestartingEngine:
    """What :class:`GateRecovery <akkordeon.session.recovery.gates.GateRecovery>` asks of an engine.

    Args:
        name: of the network.
        members: its sessions, which are told where a gate is.
        info: gives the way in, as it is now.
        update: changes it, and gives it as it is then.

    Attributes:
        lock: held while reports are heard.
    """

    def __init__(
        self,
        name: str,
        members: Members,
        info: Callable[[], NetworkInfo | None],
        update: Callable[[Callable[[NetworkInfo], NetworkInfo]], NetworkInfo],
    ) -> None:
        self.lock = threading.RLock()
        self._name = name
        self._members = members
        self._info = info
        self._update = update
        self._timers = Timers(threading.Condition(self.lock))
        self._spawning = threading.Lock()  # what comes of one is what the next begins with
        self._spare: Any = None

    def now_s(self) -> float:
        """Seconds of this machine's monotonic clock."""
        return time.monotonic()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done later, on a thread of its own."""
        self._timers.after(seconds, do)

    def respawn(self, spawn: Spawn, then: Callable[[Exception | None], None]) -> None:
        """Make a gate anew."""
        self._timers.meanwhile(partial(self.bring, spawn), then)

    def bring(self, spawn: Spawn) -> None:
        """Make a gate, in the process where others of its place live or in a new one; tell everybody."""
        with self._spawning:
            info = self._info()
            if info is None:
                return
            pool = self._pool(info)
            pool.spare, self._spare = self._spare, None
            try:
                places = pool.spawn_all([spawn])
            except BaseException:
                for name, handle in pool.hosts.items():
                    pool.end(name, handle)  # those that were there before stay
                raise
            finally:
                self._spare = pool.spare
            (host,) = places.values()
            info = self._update(partial(_with_host, name=host, pool=pool))
            self._tell(pool, places, info)
            self._members.made(spawn.address)

    def keep_spare(self, spawns: Iterable[Spawn]) -> None:
        """Have a process ready for a gate that comes back: one that is there already, or another."""
        info = self._info()
        if info is None:
            return
        pool, prefix = self._pool(info), f"host/{self._name}/{SPARE}/"
        there = [handle for name, handle in hosts_of(self._name).items() if name.startswith(prefix)]
        pool.spare = next((handle for handle in there if handle not in info.hosts.values()), None)
        for spawn in spawns:
            if spawn.restore is not None and can_be_spare(spawn.address, spawn.resources):
                pool.keep_spare(shipped(spawn.make))
                break
        self._spare = pool.spare

    def end_unused(self, after_s: float) -> None:
        """End processes, after a while, that are for no gate of the row and not spare.

        They are left by a registrar that was killed while gates came or went. No change is under way.
        """
        with self._spawning:  # each that gets a gate is listed
            used = [*self._update(NetworkInfo.without_empty).hosts.values(), self._spare]
            unused = [handle for handle in hosts_of(self._name).values() if handle not in used]
        for handle in unused:
            self._timers.after(after_s, partial(end_actor, ray, handle))

    def end_spare(self) -> None:
        """Need none any more."""
        spare, self._spare = self._spare, None
        if spare is not None:
            end_actor(ray, spare)

    def _pool(self, info: NetworkInfo) -> HostPool:
        pool = HostPool(info.seed, placement=info.placement, wire_dtype=info.wire_dtype, network=self._name)
        pool.adopt(info.hosts, info.locations, info.places)
        return pool

    def _tell(self, pool: HostPool, places: Mapping[str, str], info: NetworkInfo) -> None:
        """Have all know the way to it, and it the way to all."""
        ((address, host),) = places.items()
        made, me, known = pool.hosts[host], ray.get_runtime_context().current_actor, ray.put(info)
        sessions = self._members.hosts()
        told = [handle.set_registrar.remote(me, known) for handle in pool.hosts.values()]
        told += [made.add_listener.remote(key, session_host) for key, session_host in sessions.items()]
        told.append(made.add_routes.remote({REGISTRAR: me, **self._routes_to_sentinels()}))
        told += [session_host.add_routes.remote({address: made}) for session_host in sessions.values()]
        pool.tell_routes(places, also=told)

    def tell_of(self, sentinel: str, session_host: Any) -> None:
        """A sentinel is about to begin: have all gates that are there know the way to it."""
        info = self._info()
        for host in () if info is None else info.hosts.values():
            host.add_routes.remote(dict.fromkeys((sentinel, reader_of(sentinel)), session_host))

    def _routes_to_sentinels(self) -> dict[str, Any]:
        routes: dict[str, Any] = {}
        for entry, session_host in self._members.with_hosts():
            routes |= dict.fromkeys((entry.address, reader_of(entry.address)), session_host)
        return routes


def _with_host(info: NetworkInfo, name: str, pool: HostPool) -> NetworkInfo:
    """The way in, to one host more."""
    hosts, locations = {**info.hosts, name: pool.hosts[name]}, {**info.locations, name: pool.locations[name]}
    return replace(info, hosts=hosts, locations=locations)
