"""What runs inside a Ray actor: a dispatcher with some actors, and the way to the hosts of the others."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import ray
import torch

from akkordeon.core.actor import Spawn
from akkordeon.core.messages import Message
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.reports import ActorFailed, EpochDone, GateLeft, GateStatus, RoundDone, SentinelEnded
from akkordeon.core.surgery.reports import AtRest, Changed, Rewired
from akkordeon.engines.base import Load
from akkordeon.engines.ray.network_info import NetworkInfo, SentinelEntry
from akkordeon.engines.ray.serialization import (
    Envelope,
    Serialized,
    SerializedMessage,
    deserialize,
    serialize,
    serialize_message,
    tolerate_read_only,
)
from akkordeon.engines.threads import Threads
from akkordeon.engines.timeline import Raw, Timeline

__all__ = ["Dispatcher", "HostProcess", "Routes", "SessionHost"]

Routes = dict[str, Any]
"""Handles of hosts, by the address of an actor there. None stands for the driver, the user's process."""

COLLECT_S = 1.0
"""How long ``collect`` waits for something to hand over."""

REGISTERED = (
    ActorFailed
    | AtRest
    | Changed
    | EpochDone
    | GateLeft
    | GateStatus
    | Rewired
    | RoundDone
    | SentinelEnded
    | StageSaved
)
"""Records that the registrar of a detached network hears of, so that whoever asks later can be told."""


class Dispatcher(Threads):
    """The threads engine of one process: what is for an actor elsewhere is posted there.

    Args:
        post: sends a message to another process; False if nobody knows the address.
        workers: as of :class:`Threads`.
    """

    def __init__(self, post: Callable[[str, Message], bool], workers: int | None = None) -> None:
        super().__init__(workers)
        self._post_elsewhere = post

    @property
    def is_repeatable(self) -> bool:
        """Other processes have a say in the order, with one worker too."""
        return False

    def _post(self, to: str, message: Message) -> bool:
        return self._post_elsewhere(to, message)


class HostProcess:
    """A process that holds actors. Ray calls its methods one after the other, in the order of each caller.

    Args:
        seed: of torch's generator here.
        workers: of the dispatcher.
        wire_dtype: see :func:`akkordeon.engines.ray.serialization.serialize`.
        folders: where the driver finds modules; they are looked through last.
        spans_max: keep so many of what the actors here do, the latest; 0 keeps none.
    """

    def __init__(
        self,
        seed: int,
        workers: int | None = None,
        wire_dtype: torch.dtype | None = None,
        folders: Iterable[str] = (),
        spans_max: int = 0,
    ) -> None:
        tolerate_read_only()
        sys.path.extend(folder for folder in folders if folder not in sys.path)
        self._wire_dtype = wire_dtype
        self._spans_max = spans_max
        self._routes: Routes = {}
        self._listeners: dict[str, Any] = {}
        self._registrar: Any = None
        self._info: NetworkInfo | None = None
        self._begin(seed, workers)

    def _begin(self, seed: int, workers: int | None) -> None:
        self._dispatcher = Dispatcher(self._post, workers)
        if self._spans_max:
            self._dispatcher.timeline = Timeline(self._spans_max, latest=True)
        self._dispatcher.start(self._report, seed)

    # ── from the engine ──────────────────────────────────────────────────────────────────────────────

    def become(self, seed: int, workers: int | None) -> None:
        """Be a host from now on. So far this process was kept ready for any, and has no actors."""
        self._dispatcher.stop()
        self._begin(seed, workers)

    def spawn(self, address: str, make: Serialized) -> Serialized | None:
        """Make an actor here; what making it raises is handed back."""
        try:
            self._dispatcher.spawn(Spawn(address, deserialize(make, writable=True)))
        except Exception as error:
            return serialize(error)
        self._routes.pop(address, None)
        return None

    @ray.method(num_returns=0)
    def rehearse(self, make: Serialized) -> None:
        """Make an actor and let go of it: all that takes an import is at hand for the next."""
        with suppress(Exception):
            deserialize(make, writable=True)()

    def add_routes(self, routes: Routes) -> None:
        """Know where these actors are. Has happened when the caller hears of it."""
        self._routes = {**self._routes, **routes}  # never changed: the dispatcher looks through it

    def remove_routes(self, addresses: Iterable[str]) -> None:
        """These actors are no more."""
        gone = set(addresses)
        self._routes = {a: handle for a, handle in self._routes.items() if a not in gone}

    def add_listener(self, key: str, session_host: Any) -> None:
        """Tell this session host, too, of every report from now on."""
        self._listeners = {**self._listeners, key: session_host}

    def remove_listener(self, key: str) -> None:
        """Tell that session host no more."""
        self._listeners = {known: host for known, host in self._listeners.items() if known != key}

    def set_registrar(self, registrar: Any, info: NetworkInfo | None = None) -> None:
        """Tell the registrar of a network what is to be known of it later; ``info``: what it knows itself."""
        self._registrar, self._info = registrar, info

    def membership(self) -> tuple[NetworkInfo | None, dict[str, Any]]:
        """What a registrar knew, for one that is made anew; and the hosts of the sessions, by key."""
        return self._info, self._listeners

    def loads(self) -> dict[str, Load]:
        """How busy the actors here are."""
        return self._dispatcher.loads()

    def spans(self) -> tuple[float, list[Raw]]:
        """What the actors here did when, and what to add to these times for those of the day."""
        timeline = self._dispatcher.timeline
        return time.time() - time.monotonic(), [] if timeline is None else timeline.raw

    def heartbeat(self) -> None:
        """Answer, as long as this process lives."""

    def location(self) -> tuple[str, int]:
        """The address of this node, and the number of this process."""
        node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return node, os.getpid()

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────

    @ray.method(num_returns=0)
    def enqueue(self, serialized: SerializedMessage) -> None:
        """Put a message into a mailbox here."""
        envelope = Envelope(serialized)
        try:
            message = envelope.message()
        except Exception as error:
            self._report(ActorFailed(envelope.to, "a message that cannot be unpacked", error))
            return
        self._dispatcher.send(envelope.to, message)

    def _post(self, to: str, message: Message) -> bool:
        """Send a message to where its receiver is. Runs on the dispatcher's workers."""
        handle = self._routes.get(to)
        if handle is None:
            return False
        handle.enqueue.remote(serialize_message(to, message, self._wire_dtype))
        return True

    def _report(self, record: Any) -> None:
        """Pass a report on. Runs on the dispatcher's workers, one at a time."""
        serialized = serialize(record)
        if self._registrar is None or not isinstance(record, StageSaved):
            self._tell_session(serialized)
        if self._registrar is not None and isinstance(record, REGISTERED):
            self._registrar.report.remote(serialized)

    def _tell_session(self, report: Serialized) -> None:
        for session_host in self._listeners.values():
            session_host.report.remote(report)


class SessionHost(HostProcess):
    """The host of a session's sentinels, on its driver's node; it gathers what the driver is to hear of."""

    def __init__(
        self,
        seed: int,
        workers: int | None = None,
        wire_dtype: torch.dtype | None = None,
        folders: Iterable[str] = (),
        spans_max: int = 0,
    ) -> None:
        self._outbox: deque[tuple[str | None, Serialized]] = deque()
        self._waiting = threading.Condition()
        self._sentinels: dict[str, SentinelEntry] = {}
        super().__init__(seed, workers, wire_dtype, folders, spans_max)

    def add_sentinel(self, entry: SentinelEntry) -> None:
        """Know a sentinel as its network does, for a registrar that is made anew."""
        self._sentinels[entry.address] = entry

    def begin_sentinel(self, address: str) -> None:
        """A sentinel has been told to begin: have the network know."""
        if address in self._sentinels:
            self._sentinels[address].has_begun = True
        self._registrar.begin_sentinel.remote(address)

    def sentinels(self) -> list[SentinelEntry]:
        """Those at work here, as their network knew them."""
        at_work = self._dispatcher.loads()
        return [entry for entry in self._sentinels.values() if entry.address in at_work]

    def _report(self, record: Any) -> None:
        super()._report(record)
        if isinstance(record, SentinelEnded) and self._sentinels.pop(record.address, None) is not None:
            self._registrar.unregister_sentinel.remote(record.address)  # reports may be lost

    @ray.method(num_returns=0)
    def report(self, serialized: Serialized) -> None:
        """Take a report in from another host."""
        self._put(None, serialized)

    @ray.method(concurrency_group="control")
    def collect(self) -> list[tuple[str | None, Serialized]]:
        """Hand over reports (to None) and messages, once there are any. Runs on a thread of its own."""
        with self._waiting:
            self._waiting.wait_for(lambda: self._outbox, COLLECT_S)
            found = list(self._outbox)
            self._outbox.clear()
        return found

    def _put(self, to: str | None, serialized: Serialized) -> None:
        with self._waiting:
            self._outbox.append((to, serialized))
            self._waiting.notify()

    def _post(self, to: str, message: Message) -> bool:
        if to in self._routes and self._routes[to] is None:
            self._put(to, serialize(message))
            return True
        return super()._post(to, message)

    def _tell_session(self, report: Serialized) -> None:
        self._put(None, report)
