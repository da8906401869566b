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
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from akkordeon.core.addresses import reader_of, sentinel_address
from akkordeon.core.errors import NameTakenError, NoSuchSentinelError, explain
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
    SentinelEnded,
)
from akkordeon.core.surgery.reports import Changed
from akkordeon.engines.ray.cluster.heartbeats import HEARTBEAT_S, SILENT_S, Heartbeats, Lost
from akkordeon.engines.ray.cluster.names import is_made_anew, named, named_actors
from akkordeon.engines.ray.cluster.waits import answered
from akkordeon.engines.ray.members import Members, Statuses
from akkordeon.engines.ray.network_info import GateEntry, NetworkInfo, NetworkStatus, SentinelEntry, changed
from akkordeon.engines.ray.restarts import Restarts
from akkordeon.engines.ray.serialization import (
    Envelope,
    Serialized,
    SerializedMessage,
    deserialize,
    serialize,
    serialize_message,
    understood,
)
from akkordeon.engines.ray.snapshots import REGISTRAR, Snapshots

__all__ = ["Registrar"]

READY_S = 60.0
"""How long the hosts may take to know their registrar."""

PROBE_S = 2.0
"""How often the gates are asked how they are."""

SNAPSHOT_S = 60.0
"""How often the gates are asked for their weights, if that is quick."""

SNAPSHOT_SHARE = 0.05
"""The part of the time that may go into it, if it is not."""

WEIGHTS_S = 60.0
"""How long somebody who asks for weights waits for those of now, before older ones must do."""


class Registrar:
    """Of the network of that name. Ray calls its methods one after the other; a thread of its own watches."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._info: NetworkInfo | None = None
        self._members = Members(name)
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
        prefix = f"host/{self._name}/"
        hosts = [named(name) for name in named_actors() if name.startswith(prefix)]
        found = [
            known for known in answered(ray, (h.membership.remote() for h in hosts), (None, {})) if known[0]
        ]
        sessions = {key: host for _, listeners in found for key, host in listeners.items()}
        asked = {key: host.sentinels.remote() for key, host in sessions.items()}
        for key, entries in zip(asked, answered(ray, asked.values(), ()), strict=True):
            self._members.add_session(key, sessions[key], entries)
        if found:
            self._begin(found[0][0])
            if self._restarts is not None:
                self._restarts.unsaved = set(found[0][0].places)
            self._note("the registrar was killed, and knows again what the processes of the network know")

    def _begin(self, info: NetworkInfo) -> None:
        self._info = info
        sys.path.extend(folder for folder in info.folders if folder not in sys.path)
        if info.recovery is not None:
            tell = self._send, self._note, self._fail
            self._restarts = Restarts(self._name, self._members, info, self.info, self._move, *tell)
        self._snapshots = Snapshots(tuple(info.places), self._send, self._numbers_before)
        threading.Thread(target=self._watch, name="akkordeon-registrar", daemon=True).start()

    def _move(self, info: NetworkInfo) -> None:
        """Gates are elsewhere."""
        with self._lock:
            self._info = info

    def info(self) -> NetworkInfo | None:
        """The way in; None while the network is being started."""
        return self._info

    def failure(self) -> str | None:
        """Why the network works no more, or not now, if so."""
        if self._failure is not None:
            return self._failure
        silent = self._heartbeats.silent(SILENT_S)
        with self._lock:
            places = self._info.places if self._info else {}
            there = self._info.hosts if self._info else {}
            away = [address for address, host in places.items() if host not in there]
            gates = [address for address, host in places.items() if host in silent]
        if away and self._restarts is not None:
            return f"{', '.join(away)} is being made anew"
        if not gates:
            return None
        node, pid = self._location(places[gates[0]])
        return f"{', '.join(gates)} has not answered for {SILENT_S:g} s or more (number {pid} on {node})"

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
        with self._lock:
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
    ) -> tuple[str, int] | Serialized:
        """Give a sentinel a name of its own and a number; see :class:`Members`."""
        try:
            given = self._members.register(name, role, answers, key, session_host, location)
        except NameTakenError as error:
            return serialize(error)
        if self._restarts is not None:
            self._restarts.tell_of(sentinel_address(*given), session_host)
        return given

    def unregister_sentinel(self, address: str) -> None:
        """A sentinel has ended, or never began."""
        entry = self._members.unregister(address)
        if entry is not None and not entry.answers:
            self._note(f"{entry.name} ended")

    def register_session(self, key: str, session_host: Any) -> None:
        """A session begins; if its host dies, the gates need not tell it any more."""
        self._members.add_session(key, session_host)

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
        if isinstance(record, GateStatus) and self._info is not None and record.address in self._info.places:
            self._statuses.hear(record)
        elif isinstance(record, EpochDone | RoundDone):
            self._members.note(record)
        elif isinstance(record, SentinelEnded):
            self.unregister_sentinel(record.address)
        elif isinstance(record, GateLeft) and self._snapshots is not None:
            self._snapshots.keep(record)
        elif isinstance(record, Changed) and self._info is not None and record.error is None:
            self._move(changed(self._info, record))  # for sessions that join later, and gates that come back
            if self._restarts is not None:
                self._restarts.changed(self._info)
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
        snapshots = threading.Thread(target=self._take_snapshots, name="akkordeon-snapshots", daemon=True)
        snapshots.start()
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

    def _take_snapshots(self) -> None:
        """Have the latest weights at hand, whatever happens to the gates. Runs on a thread of its own."""
        assert self._snapshots is not None
        taken: dict[str, int] | None = None
        while self._info is not None and self._failure is None:
            began_s = time.monotonic()
            versions = self._statuses.versions()
            if versions != taken and self._snapshots.wait_for(self._snapshots.ask(), WEIGHTS_S):
                taken = versions
            took_s = time.monotonic() - began_s
            time.sleep(max(SNAPSHOT_S, took_s / SNAPSHOT_SHARE))

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
        hosts = {other: handle for other, handle in info.hosts.items() if other != name}
        self._info = replace(info, hosts=hosts)  # Ray's thread may be reading the old one
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
