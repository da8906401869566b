"""Gates of a detached network made anew, in a process on a machine that lives. Runs in its registrar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray

from akkordeon.core.actor import Spawn
from akkordeon.core.addresses import reader_of
from akkordeon.core.messages import Message
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.reports import ActorFailed, ActorLost, GateLeft, GateStatus, SentinelEnded
from akkordeon.engines.ray.host_pool import HostPool
from akkordeon.engines.ray.members import Members
from akkordeon.engines.ray.network_info import NetworkInfo
from akkordeon.engines.ray.serialization import deserialize
from akkordeon.engines.ray.snapshots import REGISTRAR

__all__ = ["Restarts"]


class Restarts:
    """Has whoever decides when gates come back hear of what happens to them.

    Args:
        name: of the network.
        members: its sessions.
        info: the way in.
        find: gives it, as it is now.
        moved: is told it, as it is then.
        send: carries a message to a gate.
        note: keeps a sentence for those who ask how the network is.
        give_up: is told the address of a gate that does not come back, and why.
    """

    def __init__(
        self,
        name: str,
        members: Members,
        info: NetworkInfo,
        find: Callable[[], NetworkInfo | None],
        moved: Callable[[NetworkInfo], None],
        send: Callable[[str, Message], None],
        note: Callable[[str], None],
        give_up: Callable[[str, str], None],
    ) -> None:
        assert info.recovery is not None, "gates come back"
        self._lock = threading.RLock()
        self._decides = deserialize(info.recovery, writable=True)(
            tuple(info.places),
            RestartingEngine(name, members, find, moved),
            send=send,
            tell=lambda record: note(str(record)),
            talk_to=lambda address: [entry.address for entry in members.entries()],
            give_up=lambda why, error: give_up(*why.split(" ", 1)),
        )
        stages = None if info.stages is None else deserialize(info.stages, writable=True)
        for _ in self._decides.keep(deserialize(info.recipe, writable=True).spawns(info.seed), stages):
            pass

    def hear(self, record: Any) -> bool:
        """Take note of a report; whether it is of a gate that comes back, and nobody else's business."""
        with self._lock:
            if isinstance(record, StageSaved):
                self._decides.saved(record)
                return True
            if isinstance(record, GateStatus):
                self._decides.heard(record.address, record.version)
            elif isinstance(record, SentinelEnded):
                self._decides.departed(record.address)
            if isinstance(record, ActorFailed):
                return bool(self._decides.failed(record))
            if isinstance(record, GateLeft):
                return bool(self._decides.left(record))
            return isinstance(record, ActorLost) and bool(self._decides.lost(record))


class RestartingEngine:
    """What :class:`GateRecovery <akkordeon.session.recovery.gates.GateRecovery>` asks of an engine.

    Args:
        name: of the network.
        members: its sessions, which are told where a gate is.
        info: gives the way in, as it is now.
        moved: is told the way in, as it is then.
    """

    def __init__(
        self,
        name: str,
        members: Members,
        info: Callable[[], NetworkInfo | None],
        moved: Callable[[NetworkInfo], None],
    ) -> None:
        self._name = name
        self._members = members
        self._info = info
        self._moved = moved

    def now_s(self) -> float:
        """Seconds of this machine's monotonic clock."""
        return time.monotonic()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done later, on a thread of its own."""
        timer = threading.Timer(seconds, do)
        timer.daemon = True
        timer.start()

    def spawn(self, spawn: Spawn) -> None:
        """Make a gate, in the process where others of its place live or in a new one; tell everybody.

        Raises:
            AkkordeonError: it cannot be made.
        """
        info = self._info()
        if info is None:
            return
        pool = HostPool(info.seed, placement=info.placement, wire_dtype=info.wire_dtype, network=self._name)
        pool.adopt(info.hosts, info.locations, info.places)
        places = pool.spawn_all([spawn])
        info = replace(info, hosts=dict(pool.hosts), locations=dict(pool.locations))
        self._moved(info)
        self._tell(pool, places, info)

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

    def _routes_to_sentinels(self) -> dict[str, Any]:
        routes: dict[str, Any] = {}
        for entry, session_host in self._members.with_hosts():
            routes |= dict.fromkeys((entry.address, reader_of(entry.address)), session_host)
        return routes
