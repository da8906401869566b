"""The registrar of a detached network: it knows who is where, outlives every session, and sees who dies.

One Ray actor a network, named after it. Sessions ask it for the way in; gates and session hosts tell it what
is to be known later; it asks all of them for heartbeats, and has the gates forget the sentinels of a session
that died. If its process is killed Ray makes it anew, and it asks the hosts what it knew.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray

from akkordeon.core.addresses import reader_of, sentinel_address
from akkordeon.core.errors import ClusterError, NameTakenError, NoSuchSentinelError, explain
from akkordeon.core.messages import Close, Detach, Forget, Message, Probe
from akkordeon.core.recovery.messages import Save
from akkordeon.core.reports import (
    ActorFailed,
    ActorLost,
    ClusterLost,
    EpochDone,
    GateLeft,
    GateStatus,
    RoundDone,
)
from akkordeon.core.surgery.reports import AtRest, Changed, Rewired, RowChanged
from akkordeon.engines.ray.cluster.heartbeats import HEARTBEAT_S, SILENT_S, Heartbeats, Lost
from akkordeon.engines.ray.cluster.names import is_made_anew
from akkordeon.engines.ray.members import Members, Statuses
from akkordeon.engines.ray.network_info import GateEntry, NetworkInfo, NetworkStatus, SentinelEntry, changed
from akkordeon.engines.ray.restarts import RestartingEngine, Restarts
from akkordeon.engines.ray.serialization import (
    Envelope,
    Serialized,
    SerializedMessage,
    deserialize,
    serialize,
    serialize_message,
    understood,
)
from akkordeon.engines.ray.snapshots import REGISTRAR, WEIGHTS_S, Snapshots
from akkordeon.engines.ray.surgery.row_surgery import RowSurgery

__all__ = ["Registrar"]

READY_S = 60.0
"""How long the hosts may take to know their registrar."""

PROBE_S = 2.0
"""How often the gates are asked how they are."""


class Registrar:
    """Of the network of that name. Ray calls its methods one after the other; a thread of its own watches."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._info: NetworkInfo | None = None
        self._members = Members(name)
        self._surgery: RowSurgery | None = None
        self._restarts: Restarts | None = None
        self._numbers_before = 0
        self._statuses = Statuses()
        self._failure: str | None = None
        self._events: list[str] = []
        self._heartbeats = Heartbeats()
        self._snapshots: Snapshots | None = None
        self._saved: dict[str, int] | None = None  # versions of the gates when weights were asked for last
        self._probes = itertools.count(1)
        if is_made_anew():
            self._take_up()

    # ── for sessions ─────────────────────────────────────────────────────────────────────────────────

    def open(self, info: NetworkInfo, myself: Any) -> None:
        """The gates are there: begin to keep watch."""
        known = ray.put(info)  # large: processes of one machine share it
        told = [host.set_registrar.remote(myself, known) for host in info.hosts.values()]
        told += [host.add_routes.remote({REGISTRAR: myself}) for host in info.hosts.values()]
        ray.get(told, timeout=READY_S)
        self._begin(info)

    def _take_up(self) -> None:
        """Know again what was known before this process was killed: the hosts do, and those of sessions.

        Numbers that sentinels and cuts had are not known: the seconds since 1970 are above them all.
        """
        self._numbers_before = int(time.time())
        self._members = Members(self._name, self._numbers_before)
        info = self._members.take_up()
        if info is not None:
            self._begin(info)
            if self._restarts is not None:
                self._restarts.unsaved = set(info.places)
            assert self._surgery is not None, "it has begun"
            threading.Thread(target=self._surgery.settle, name="akkordeon-settle", daemon=True).start()
            self._note("the registrar was killed, and knows again what the processes of the network know")

    def _begin(self, info: NetworkInfo) -> None:
        snapshots = self._know(info)
        taken = self._statuses.versions, lambda: self._info is not None and self._failure is None
        for name, do, args in (("registrar", self._watch, ()), ("snapshots", snapshots.follow, taken)):
            threading.Thread(target=do, args=args, name=f"akkordeon-{name}", daemon=True).start()

    def _know(self, info: NetworkInfo) -> Snapshots:
        self._info = info
        sys.path.extend(folder for folder in info.folders if folder not in sys.path)
        engine = RestartingEngine(self._name, self._members, self.info, self._update)
        if info.recovery is not None:
            self._restarts = Restarts(engine, self._members, info, self._send, self._note, self._fail)
        decides = None if self._restarts is None else self._restarts.decides
        there = self.info, self._update, self._send, lambda: self._failure, self._row_changed
        self._surgery = RowSurgery(self._members, engine, decides, *there)
        self._snapshots = Snapshots(info.row, self._send, self._numbers_before)
        return self._snapshots

    def _update(self, change: Callable[[NetworkInfo], NetworkInfo]) -> NetworkInfo:
        """Gates are elsewhere, or others."""
        with self._lock:
            if self._info is None:
                raise ClusterError(f"the network {self._name!r} has ended")
            self._info = change(self._info)
            return self._info

    def _row_changed(self, record: RowChanged) -> None:
        self._statuses.keep(record.row)
        if self._snapshots is not None:
            self._snapshots.rearranged(record.row)
        self._note(f"the row was changed: {', '.join(record.row)}")

    def info(self) -> NetworkInfo | None:
        """The way in; None while the network is being started."""
        return self._info

    def failure(self) -> str | None:
        """Why the network works no more, or not now, if so."""
        info = self._info
        if self._failure is not None or info is None:
            return self._failure
        if (away := info.away()) and self._restarts is not None:
            return f"{', '.join(away)} is being made anew"
        return info.silence(self._heartbeats.silent(SILENT_S), SILENT_S)

    def there(self) -> tuple[dict[str, Any], dict[str, tuple[str, int]]] | None:
        """The hosts with gates that are there now, and where; None once the network has failed or ended."""
        info = self._info
        return None if info is None or self._failure is not None else (info.hosts, info.locations)

    @ray.method(concurrency_group="control")
    def weights(self) -> Serialized | None:
        """The weights of now, or the latest that are known; None if there are none yet."""
        snapshots = self._snapshots
        if snapshots is None:
            return None
        if self.failure() is None:
            snapshots.wait_for(snapshots.ask(), WEIGHTS_S)
        if self._failure is not None:  # it may have come while we waited: a session notices some before us
            snapshots.wait_for_last(self._living_gates(), WEIGHTS_S / 4)
        latest = snapshots.latest()
        if latest is None:
            return None
        self._saved = dict(latest.versions)
        return serialize(latest)

    @ray.method(concurrency_group="control")
    def unsaved(self) -> bool:
        """Whether the network was trained since its weights were asked for last."""
        self._statuses.wait_for(self._living_gates(), self._probe_gates(), PROBE_S)
        saved = self._saved or {}
        return any(version > saved.get(address, 0) for address, version in self._statuses.versions().items())

    def _living_gates(self) -> list[str]:
        info = self._info
        return [a for a, host in info.places.items() if host in info.hosts] if info else []

    def register_sentinel(
        self,
        name: str | None,
        role: str,
        answers: bool,
        key: str,
        session_host: Any,
        location: tuple[str, int],
        row: tuple[str, ...],
    ) -> tuple[str, int] | Serialized | None:
        """Give a sentinel a name of its own and a number; see :class:`Members`.

        None has it come again, where the row is being changed, or is not the one that its session knows.
        """
        if self._surgery is None or self._info is None:
            return serialize(ClusterError(f"the network {self._name!r} has ended"))
        if self._info.row != row:
            return None
        what = partial(self._members.register, name, role, answers, key, session_host, location)
        try:
            given = self._surgery.pauses.admit(what)
        except NameTakenError as error:
            return serialize(error)
        if given is not None:
            self._surgery.tell_of(sentinel_address(*given), session_host)
        return given

    @ray.method(max_task_retries=-1)  # comes also where this process is just being made anew
    def begin_sentinel(self, address: str) -> None:
        """A sentinel has been told to begin."""
        assert self._surgery is not None, "a session has joined"
        self._surgery.pauses.begin_sentinel(address)

    @ray.method(max_task_retries=-1)
    def unregister_sentinel(self, address: str) -> None:
        """A sentinel has ended, or never began."""
        entry = self._members.unregister(address)
        if entry is not None and not entry.answers:
            self._note(f"{entry.name} ended")

    def register_session(self, key: str, session_host: Any, edition: int) -> None:
        """A session begins, which may know an earlier row; a host that dies need not be told any more."""
        self._members.add_session(key, session_host)
        if (info := self._info) is not None and info.edition != edition:
            session_host.report.remote(serialize(info))
            for host in info.hosts.values():
                host.add_listener.remote(key, session_host)

    @ray.method(concurrency_group="surgery")
    def rearrange(self, key: str, operation: Serialized, folders: tuple[str, ...]) -> Serialized:
        """Have gates come or go, as a session asks; see :meth:`RowSurgery.do`."""
        assert self._surgery is not None, "a session has joined"
        return self._surgery.do(key, operation, folders)

    def unregister_session(self, key: str) -> None:
        """A session ends; its host is no more."""
        self._remove_session(key)

    def detach(self, name: str, drop: bool) -> Serialized | None:
        """Have a sentinel end, whoever attached it."""
        try:
            address, session_host = self._members.host_of(name)
        except NoSuchSentinelError as error:
            return serialize(error)
        session_host.enqueue.remote(serialize_message(address, Detach(drop)))
        return None

    def status(self) -> NetworkStatus:
        """How the network is."""
        with self._lock:
            gates = [
                GateEntry(address, *self._location(host), *self._statuses.of(address))
                for address, host in (self._info.places.items() if self._info else ())
            ]
            return NetworkStatus(
                self._name, gates, self._members.entries(), self.failure(), list(self._events)
            )

    def _location(self, host: str) -> tuple[str, int]:
        assert self._info is not None
        return self._info.locations.get(host, ("?", 0))

    def end(self, why: str) -> None:
        """Tell every session that the network ends, and end its gates."""
        with self._lock:
            info, self._info = self._info, None
        if self._restarts is not None:
            self._restarts.stop()
        if info is None:
            return
        for address in info.places:
            self._members.report(ActorLost(address, why))
        for host in info.hosts.values():
            ray.kill(host)

    # ── for hosts ────────────────────────────────────────────────────────────────────────────────────

    @ray.method(num_returns=0)
    def enqueue(self, serialized: SerializedMessage) -> None:
        """Take in what a gate sends to the registrar: its part of a cut."""
        message = understood(lambda: Envelope(serialized, writable=True).message(), self._note)
        if self._snapshots is not None:
            self._snapshots.hear(message)

    @ray.method(num_returns=0)
    def report(self, serialized: Serialized) -> None:
        """Remember what a gate or a sentinel tells."""
        record = understood(partial(deserialize, serialized, writable=True), self._note)
        if self._restarts is not None and self._restarts.hear(record):
            return
        if self._surgery is not None and isinstance(record, AtRest | Changed | Rewired):
            self._surgery.hear(record)
        if isinstance(record, GateStatus) and self._info is not None and record.address in self._info.places:
            self._statuses.hear(record)
        elif isinstance(record, EpochDone | RoundDone):
            self._members.note(record)
        elif isinstance(record, GateLeft) and self._snapshots is not None:
            self._snapshots.keep(record)
        elif isinstance(record, Changed) and self._info is not None and record.error is None:
            info = self._update(partial(changed, record=record))  # for who joins later, and who comes back
            if self._restarts is not None:
                self._restarts.changed(info)
        elif isinstance(record, ActorFailed):
            self._fail(record.address, f"failed on {record.doing}: {explain(record.error)}")

    def _fail(self, address: str, why: str) -> None:
        if self._info is not None and address in self._info.places:
            if self._restarts is not None:
                why += self._restarts.story(address)
            if self._failure is None:
                self._tell_gates(Close())  # nothing will come of them any more but their weights
            self._failure = self._failure or f"{address} {why}"
            if self._snapshots is not None:
                self._snapshots.give_up()
            if self._restarts is not None:  # sessions have not counted it as a failure until now
                self._members.report(ClusterLost(self._failure))
        self._note(f"{address} {why}")

    def _note(self, what: str) -> None:
        with self._lock:
            self._events = [*self._events[-19:], what]

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        """Ask all for heartbeats, and the gates how they are. Runs on a thread of its own, to the end."""
        probed_s = 0.0
        while self._info is not None:
            for name in self._dead():
                self._mark_lost(name)
            if time.monotonic() - probed_s >= PROBE_S:
                probed_s = time.monotonic()
                self._probe_gates()
            time.sleep(HEARTBEAT_S)

    def _probe_gates(self) -> int:
        """Ask the gates how they are; the number of the question. Those of sessions are above 0."""
        number = next(self._probes)
        self._tell_gates(Probe(-number))
        for address in () if self._restarts is None else tuple(self._restarts.unsaved):
            self._send(address, Save())  # again and again: none hears of those who ask while they come up
        return number

    def _dead(self) -> list[str]:
        """Ask everybody who owes no answer for a sign of life; the names of those who will give none."""
        with self._lock:
            members = {**(self._info.hosts if self._info else {}), **self._members.hosts()}
        for name, handle in members.items():
            self._heartbeats.ask(name, handle.heartbeat.remote)
        answers = self._heartbeats.answers(HEARTBEAT_S, all_of_them=True)
        return [name for name, answer in answers if isinstance(answer, Lost)]

    def _tell_gates(self, message: Message) -> None:
        for address in self._living_gates():
            self._send(address, message)

    def _send(self, address: str, message: Message) -> None:
        """Put a message into the mailbox of a gate or a sentinel, if its host is there."""
        info = self._info
        if info is not None and address in info.places:
            host = info.hosts.get(info.places[address])
        else:
            host = self._members.session_host(address)
        if host is not None:
            host.enqueue.remote(serialize_message(address, message))

    def _mark_lost(self, name: str) -> None:
        """Somebody's process is gone: a session with its sentinels, or a host with its gates."""
        if name in self._members.hosts():
            for entry in self._remove_session(name):
                self._tell_gates(Forget(entry.address))
                died = f"its process died (number {entry.pid} on {entry.node})"
                self._note(f"{entry.name} is lost: {died}{entry.counts}")
            return
        info = self._info
        if info is None or name not in info.hosts:
            return
        info = self._update(partial(NetworkInfo.without, name=name))
        node, pid = info.locations.get(name, ("?", 0))
        why = f"its process died (number {pid} on {node})"
        for address in [address for address, host in info.places.items() if host == name]:
            if self._restarts is None or not self._restarts.hear(ActorLost(address, why)):
                self._fail(address, f"is lost: {why}")

    def _remove_session(self, key: str) -> list[SentinelEntry]:
        """Forget a session; the sentinels that were at work there."""
        gone = self._members.remove_session(key)
        addresses = [entry.address for entry in gone]
        self._heartbeats.drop(key)
        with self._lock:
            hosts = list(self._info.hosts.values()) if self._info else []
        readers = [reader_of(address) for address in addresses]
        for host in hosts:
            host.remove_listener.remote(key)
            host.remove_routes.remote([*addresses, *readers])
        return gone
