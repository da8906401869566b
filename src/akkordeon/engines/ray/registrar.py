"""The keeper of a detached network: it knows who is where, outlives every session, and sees who dies.

One Ray actor a network, named after it. Sessions ask it for the way in; gates and homes tell it what is
to be remembered; it feels their pulse and has the gates forget the sentinels of a home that died.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from akkordeon.core.errors import NameTakenError, NoSuchSentinelError, explain
from akkordeon.core.messages import Close, Detach, Forget, Message, Probe
from akkordeon.core.reports import (
    ActorFailed,
    ActorLost,
    EpochDone,
    GateLeft,
    GateStatus,
    RoundDone,
    SentinelEnded,
)
from akkordeon.engines.ray.serialization import Letter, Opened, Parcel, pack, seal, unpack
from akkordeon.engines.ray.snapshots import KEEPER, Snapshots

__all__ = ["GateLine", "Keeper", "Plan", "SentinelLine", "Survey"]

READY_S = 60.0
"""How long the hosts may take to know their keeper."""

PULSE_S = 0.5
"""How often each process's pulse is felt."""

PROBE_S = 2.0
"""How often the gates are asked how they are."""

SILENT_S = 30.0
"""How long a host may owe a sign of life: until it gives one, the network does not work."""

SNAPSHOT_S = 60.0
"""How often the gates are asked for their weights, if that is quick."""

SNAPSHOT_SHARE = 0.05
"""The part of the time that may go into it, if it is not."""

WEIGHTS_S = 60.0
"""How long somebody who asks for weights waits for those of now, before older ones must do."""


@dataclass(frozen=True)
class Plan:
    """What a session must know to join. ``hosts`` are handles by name, ``places`` host names by address.

    ``description``: how the network's task is made again, for those that keep its weights.
    """

    recipe: Parcel
    seed: int
    hosts: dict[str, Any]
    where: dict[str, tuple[str, int]]
    places: dict[str, str]
    wire_dtype: Any = None
    description: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GateLine:
    """A gate, as last heard of. ``node`` and ``pid``: where it is."""

    address: str
    node: str
    pid: int
    status: GateStatus | None
    updates_per_s: float


@dataclass
class SentinelLine:
    """A sentinel, as last heard of."""

    name: str
    role: str
    address: str
    node: str
    pid: int
    answers: bool = False  # a question, of whose end nobody needs to hear
    last: EpochDone | RoundDone | None = None


@dataclass(frozen=True)
class Survey:
    """How a network is."""

    name: str
    gates: list[GateLine]
    sentinels: list[SentinelLine]
    failure: str | None
    left: list[str] = field(default_factory=list)


class Keeper:
    """See the module. Ray calls its methods one after the other; a thread of its own keeps watch.

    Args:
        name: of the network.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._told = threading.Condition(self._lock)  # by gates, how they are
        self._plan: Plan | None = None
        self._homes: dict[str, Any] = {}
        self._sentinels: dict[str, SentinelLine] = {}
        self._home_of: dict[str, str] = {}  # key of the home, by address of the sentinel
        self._numbers: Counter[str] = Counter()
        self._gates: dict[str, GateStatus] = {}
        self._heard: dict[str, tuple[float, int]] = {}  # when each gate had which version
        self._rates: dict[str, float] = {}
        self._failure: str | None = None
        self._left: list[str] = []
        self._awaited: dict[Any, str] = {}
        self._asked_s: dict[str, float] = {}  # since when each owes an answer
        self._snapshots: Snapshots | None = None
        self._saved: dict[str, int] | None = None  # versions of the gates when weights were asked for last
        self._probes = itertools.count(1)

    # ── for sessions ─────────────────────────────────────────────────────────────────────────────────

    def open(self, plan: Plan, myself: Any) -> None:
        """The gates are there: begin to keep watch."""
        self._plan = plan
        self._snapshots = Snapshots(tuple(plan.places), self._send)
        kept = [host.keep.remote(myself) for host in plan.hosts.values()]
        routed = [host.route.remote({KEEPER: myself}) for host in plan.hosts.values()]
        ray.get([*kept, *routed], timeout=READY_S)
        threading.Thread(target=self._watch, name="akkordeon-keeper", daemon=True).start()

    def plan(self) -> Plan | None:
        """The way in; None while the network is being started."""
        return self._plan

    def failure(self) -> str | None:
        """Why the network works no more, or not now, if so."""
        if self._failure is not None:
            return self._failure
        now_s = time.monotonic()
        with self._lock:
            silent = {name for name, asked_s in self._asked_s.items() if now_s - asked_s > SILENT_S}
            places = self._plan.places if self._plan else {}
            gates = [address for address, host in places.items() if host in silent]
        if not gates:
            return None
        node, pid = self._whereabouts(places[gates[0]])
        return f"{', '.join(gates)} has not answered for {SILENT_S:g} s or more (number {pid} on {node})"

    @ray.method(concurrency_group="desk")
    def weights(self) -> Parcel | None:
        """The weights of now, or the latest that are known; None if there are none yet."""
        snapshots = self._snapshots
        if snapshots is None:
            return None
        if self._failure is not None:
            snapshots.wait_for_last(self._living_gates(), WEIGHTS_S / 4)
        elif self.failure() is None:
            snapshots.wait_for(snapshots.ask(), WEIGHTS_S)
        kept = snapshots.kept()
        if kept is None:
            return None
        self._saved = dict(kept.versions)
        return pack(kept)

    @ray.method(concurrency_group="desk")
    def unsaved(self) -> bool:
        """Whether the network was trained since its weights were asked for last."""
        number, gates = self._probe_gates(), self._living_gates()
        with self._told:
            self._told.wait_for(lambda: all(self._answered(gate) >= number for gate in gates), PROBE_S)
        saved = self._saved or {}
        return any(gate.version > saved.get(address, 0) for address, gate in self._gates.items())

    def _living_gates(self) -> list[str]:
        with self._lock:
            plan = self._plan
            return [a for a, host in plan.places.items() if host in plan.hosts] if plan else []

    def admit(
        self, name: str | None, role: str, answers: bool, key: str, home: Any, where: tuple[str, int]
    ) -> tuple[str, int] | Parcel:
        """Give a sentinel a name that no other here has, and a number that none ever had."""
        with self._lock:
            taken = {line.name for line in self._sentinels.values()}
            if name is None:
                numbered = (f"{role}-{i}" for i in itertools.count(2))
                name = next(n for n in itertools.chain([role], numbered) if n not in taken)
            if name in taken:
                why = f"a sentinel {name!r} is at work in {self._name!r} already; give this one another name"
                return pack(NameTakenError(why))
            self._numbers[name] += 1
            address = f"sentinel/{name}#{self._numbers[name]}"
            self._sentinels[address] = SentinelLine(name, role, address, *where, answers)
            self._home_of[address] = key
            self._homes[key] = home
            return name, self._numbers[name]

    def dismiss(self, address: str) -> None:
        """A sentinel has ended, or never began."""
        with self._lock:
            line = self._sentinels.pop(address, None)
            self._home_of.pop(address, None)
        if line is not None and not line.answers:
            self._note(f"{line.name} ended")

    def welcome(self, key: str, home: Any) -> None:
        """A session begins; if its process dies, the gates need not tell its home any more."""
        with self._lock:
            self._homes[key] = home

    def farewell(self, key: str) -> None:
        """A session ends; its home is no more."""
        self._close_home(key)

    def detach(self, name: str, drop: bool) -> Parcel | None:
        """Have a sentinel end, whoever attached it."""
        with self._lock:
            found = [line for line in self._sentinels.values() if line.name == name]
            if not found:
                known = ", ".join(sorted(repr(line.name) for line in self._sentinels.values())) or "none"
                why = f"no sentinel {name!r} is at work in {self._name!r}; there are: {known}"
                return pack(NoSuchSentinelError(why))
            address = found[0].address
            home = self._homes[self._home_of[address]]
        home.enqueue.remote(seal(address, Detach(drop)))
        return None

    def survey(self) -> Survey:
        """How the network is."""
        with self._lock:
            gates = [
                GateLine(
                    address, *self._whereabouts(host), self._gates.get(address), self._rates.get(address, 0.0)
                )
                for address, host in (self._plan.places.items() if self._plan else ())
            ]
            return Survey(self._name, gates, list(self._sentinels.values()), self.failure(), list(self._left))

    def _whereabouts(self, host: str) -> tuple[str, int]:
        assert self._plan is not None
        return self._plan.where.get(host, ("?", 0))

    def end(self, why: str) -> None:
        """Tell every session that the network ends, and end its gates."""
        with self._lock:
            plan, self._plan = self._plan, None
            homes = list(self._homes.values())
        if plan is None:
            return
        for address in plan.places:
            for home in homes:
                home.report.remote(pack(ActorLost(address, why)))
        for host in plan.hosts.values():
            ray.kill(host)

    # ── for hosts ────────────────────────────────────────────────────────────────────────────────────

    @ray.method(num_returns=0)
    def enqueue(self, letter: Letter) -> None:
        """Take in what a gate sends to the keeper: its part of a cut."""
        opened = Opened(letter, writable=True)
        if self._snapshots is not None:
            self._snapshots.hear(opened.message())

    @ray.method(num_returns=0)
    def report(self, parcel: Parcel) -> None:
        """Remember what a gate or a sentinel tells."""
        try:
            record = unpack(parcel, writable=True)
        except Exception as error:
            self._note(f"a report could not be read: {explain(error)}")
            return
        if isinstance(record, GateStatus):
            self._hear(record)
        elif isinstance(record, EpochDone | RoundDone):
            with self._lock:
                for line in self._sentinels.values():
                    if line.name == record.sentinel:
                        line.last = record
        elif isinstance(record, SentinelEnded):
            self.dismiss(record.address)
        elif isinstance(record, GateLeft) and self._snapshots is not None:
            self._snapshots.keep(record)
        elif isinstance(record, ActorFailed):
            self._fail(record.address, f"failed on {record.doing}: {explain(record.error)}")

    def _hear(self, status: GateStatus) -> None:
        now_s = time.monotonic()
        then_s, version = self._heard.get(status.address, (now_s, status.version))
        with self._lock:
            self._gates[status.address] = status
            self._told.notify_all()
            if now_s - then_s >= PROBE_S / 2:
                self._rates[status.address] = (status.version - version) / (now_s - then_s)
            if now_s - then_s >= PROBE_S / 2 or status.address not in self._heard:
                self._heard[status.address] = (now_s, status.version)

    def _fail(self, address: str, why: str) -> None:
        if self._plan is not None and address in self._plan.places:
            if self._failure is None:
                self._tell_gates(Close())  # nothing will come of them any more but their weights
            self._failure = self._failure or f"{address} {why}"
        self._note(f"{address} {why}")

    def _note(self, what: str) -> None:
        with self._lock:
            self._left = [*self._left[-19:], what]

    # ── watching ─────────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        """Feel every pulse, and ask the gates how they are. Runs on a thread of its own, to the end."""
        probed_s = 0.0
        snapshots = threading.Thread(target=self._take_snapshots, name="akkordeon-snapshots", daemon=True)
        snapshots.start()
        while self._plan is not None:
            for name in self._dead():
                self._lose(name)
            if time.monotonic() - probed_s >= PROBE_S:
                probed_s = time.monotonic()
                self._probe_gates()
            threading.Event().wait(PULSE_S)

    def _probe_gates(self) -> int:
        """Ask the gates how they are; the number of the question. Those of sessions are above 0."""
        number = next(self._probes)
        self._tell_gates(Probe(-number))
        return number

    def _answered(self, gate: str) -> int:
        """The latest question of ours that a gate has answered."""
        return -self._gates[gate].probe if gate in self._gates else 0

    def _take_snapshots(self) -> None:
        """Have the latest weights at hand, whatever happens to the gates. Runs on a thread of its own."""
        assert self._snapshots is not None
        taken: dict[str, int] | None = None
        while self._plan is not None and self._failure is None:
            began_s = time.monotonic()
            versions = {address: status.version for address, status in self._gates.items()}
            if versions != taken and self._snapshots.wait_for(self._snapshots.ask(), WEIGHTS_S):
                taken = versions
            took_s = time.monotonic() - began_s
            threading.Event().wait(max(SNAPSHOT_S, took_s / SNAPSHOT_SHARE))

    def _dead(self) -> list[str]:
        """Ask everybody who owes no answer for a sign of life; the names of those who will give none."""
        with self._lock:
            members = {**(self._plan.hosts if self._plan else {}), **self._homes}
        for name, handle in members.items():
            if name not in self._awaited.values():
                self._awaited[handle.pulse.remote()] = name
                self._asked_s[name] = time.monotonic()
        if not self._awaited:
            return []
        asked = list(self._awaited)
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=PULSE_S)
        dead = []
        for ref in answered:
            name = self._awaited.pop(ref)
            with self._lock:
                self._asked_s.pop(name, None)
            try:
                ray.get(ref)
            except ray.exceptions.ActorUnavailableError:
                continue  # it may come back; if it does not, Ray says that it died
            except ray.exceptions.RayError:
                dead.append(name)
        return dead

    def _tell_gates(self, message: Message) -> None:
        for address in self._living_gates():
            self._send(address, message)

    def _send(self, address: str, message: Message) -> None:
        """Put a message into a gate's mailbox, if its host is there."""
        plan = self._plan
        host = None if plan is None else plan.hosts.get(plan.places.get(address, ""))
        if host is not None:
            host.enqueue.remote(seal(address, message))

    def _lose(self, name: str) -> None:
        """Somebody's process is gone: a home with its sentinels, or a host with its gates."""
        if name in self._homes:
            for line in self._close_home(name):
                self._tell_gates(Forget(line.address))
                self._note(f"{line.name} is lost: its process died (number {line.pid} on {line.node})")
            return
        plan = self._plan
        if plan is None or name not in plan.hosts:
            return
        hosts = {other: handle for other, handle in plan.hosts.items() if other != name}
        self._plan = replace(plan, hosts=hosts)  # Ray's thread may be reading the old one
        node, pid = plan.where.get(name, ("?", 0))
        why = f"its process died (number {pid} on {node})"
        for address in [address for address, host in plan.places.items() if host == name]:
            self._fail(address, f"is lost: {why}")

    def _close_home(self, key: str) -> list[SentinelLine]:
        """Forget a home; the sentinels that were at work there."""
        with self._lock:
            self._homes.pop(key, None)
            addresses = [address for address, home in self._home_of.items() if home == key]
            gone = [self._sentinels.pop(address) for address in addresses]
            for address in addresses:
                del self._home_of[address]
            hosts = list(self._plan.hosts.values()) if self._plan else []
        for host in hosts:
            host.deafen.remote(key)
            host.unroute.remote([*addresses, *(a.replace("sentinel/", "reader/", 1) for a in addresses)])
        return gone
