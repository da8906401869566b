"""The sessions of a detached network, their sentinels and its gates, as its registrar knows them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray

from akkordeon.core.addresses import free_name, sentinel_address
from akkordeon.core.errors import NameTakenError, NoSuchSentinelError
from akkordeon.core.reports import EpochDone, GateStatus, RoundDone
from akkordeon.engines.ray.cluster.names import SPARE, end_named, hosts_of
from akkordeon.engines.ray.cluster.waits import answered
from akkordeon.engines.ray.network_info import NetworkInfo, SentinelEntry
from akkordeon.engines.ray.serialization import serialize

__all__ = ["Members", "Statuses"]

NUMBERS_MAX = 1000
"""Names of which it is kept how many sentinels had them; others go on above the highest of any forgotten."""

RATE_S = 1.0
"""The least time between two statuses that a rate is taken of."""


class Members:
    """Who is attached to a network, by which session. Its methods may be called from any thread.

    Args:
        network: its name.
        numbers_before: numbers up to this one may have been given before.
    """

    def __init__(self, network: str, numbers_before: int = 0) -> None:
        self._network = network
        self._lock = threading.Lock()
        self._hosts: dict[str, Any] = {}  # of the sessions, by key
        self._sentinels: dict[str, SentinelEntry] = {}  # by address
        self._session_of: dict[str, str] = {}  # key, by address of the sentinel
        self._numbers: dict[str, int] = {}  # the latest of each name
        self._forgotten = numbers_before  # the highest of a name that is not in there
        self._late: dict[str, Any] = {}  # what sessions were asked for and have not answered, by key
        self._made: list[str] = []  # gates made meanwhile
        self._ended: set[str] = set()  # sentinels that ended meanwhile, which a late answer may still have

    def register(
        self, name: str | None, role: str, answers: bool, key: str, host: Any, location: tuple[str, int]
    ) -> tuple[str, int]:
        """Give a sentinel a name that no other here has, and a number that none of that name ever had.

        A session knows before this does that one of its own has ended, and may give its name again.

        Raises:
            NameTakenError: one of another session has the name.
        """
        with self._lock:
            sessions: dict[str, set[str]] = {}  # by name
            for address, entry in self._sentinels.items():
                sessions.setdefault(entry.name, set()).add(self._session_of[address])
            name = free_name(role, sessions) if name is None else name
            if sessions.get(name, set()) - {key}:
                raise NameTakenError(
                    f"a sentinel {name!r} is at work in {self._network!r} already; give this one another name"
                )
            number = self._numbers.pop(name, self._forgotten) + 1
            self._numbers[name] = number
            if len(self._numbers) > NUMBERS_MAX:
                self._forgotten = max(self._forgotten, self._numbers.pop(next(iter(self._numbers))))
            self._take_in(SentinelEntry(name, role, sentinel_address(name, number), *location, answers), key)
            self._hosts[key] = host
            return name, number

    def _take_in(self, entry: SentinelEntry, key: str) -> None:
        self._sentinels[entry.address] = entry
        self._session_of[entry.address] = key

    def take_up(self) -> NetworkInfo | None:
        """Know again what was known before the registrar was killed: the hosts do, and those of sessions.

        A process that it had just made for a gate, and told nobody of, ends: there its gate is not found.

        Returns:
            The latest way in that is known; None if there is none.
        """
        hosts = hosts_of(self._network)
        told = answered(ray, (host.membership.remote() for host in hosts.values()), (None, {}))
        there = [host for host, known in zip(hosts.values(), told, strict=True) if known[0]]
        found = [known for known in told if known[0]]
        sessions = {key: host for _, listeners in found for key, host in listeners.items()}
        asked = {key: host.sentinels.remote() for key, host in sessions.items()}
        for key, entries in zip(asked, answered(ray, asked.values(), None), strict=True):
            if entries is None:
                self._late[key] = asked[key]
            self.add_session(key, sessions[key], entries or ())
        if found:
            end_named(_unlisted(hosts, self._network, [info for info, _ in found]))
        latest = (info for info, _ in found)
        return max(latest, key=lambda info: (info.edition, info.gates_in(there)), default=None)

    def late(self) -> dict[str, Any]:
        """What sessions were asked for when the registrar was made anew and have not answered yet, by key."""
        with self._lock:
            return {key: asked for key, asked in self._late.items() if key in self._hosts}

    def came_late(self, key: str, entries: Iterable[SentinelEntry]) -> tuple[list[SentinelEntry], list[str]]:
        """A session has answered: its sentinels, of which nobody told gates, and the gates made meanwhile."""
        with self._lock:
            self._late.pop(key, None)
            made, self._made = self._made, self._made if self._late else []
            known = self._sentinels.keys() | self._ended
            new = [entry for entry in entries if key in self._hosts and entry.address not in known]
            for entry in new:
                self._take_in(entry, key)
            if not self._late:
                self._ended.clear()
            return new, list(made)

    def made(self, gate: str) -> None:
        """A gate was made, of which those that are known are told."""
        with self._lock:
            if self._late:
                self._made.append(gate)

    def begin(self, address: str) -> None:
        """A sentinel has been told to begin."""
        with self._lock:
            if address in self._sentinels:
                self._sentinels[address].has_begun = True

    def unregister(self, address: str) -> SentinelEntry | None:
        """A sentinel has ended, or never began; what was known of it."""
        with self._lock:
            if self._late:
                self._ended.add(address)
            self._session_of.pop(address, None)
            return self._sentinels.pop(address, None)

    def add_session(self, key: str, host: Any, entries: Iterable[SentinelEntry] = ()) -> None:
        """A session is there, with these sentinels."""
        with self._lock:
            self._hosts[key] = host
            for entry in entries:
                self._take_in(entry, key)

    def remove_session(self, key: str) -> list[SentinelEntry]:
        """A session is no more; the sentinels that were at work there."""
        with self._lock:
            self._hosts.pop(key, None)
            self._late.pop(key, None)
            addresses = [address for address, session in self._session_of.items() if session == key]
            for address in addresses:
                del self._session_of[address]
            return [self._sentinels.pop(address) for address in addresses]

    def hosts(self) -> dict[str, Any]:
        """The hosts of the sessions, by key."""
        with self._lock:
            return dict(self._hosts)

    def entries(self) -> list[SentinelEntry]:
        """All sentinels."""
        with self._lock:
            return list(self._sentinels.values())

    def with_hosts(self) -> list[tuple[SentinelEntry, Any]]:
        """All sentinels, each with the host of its session."""
        with self._lock:
            return [(e, self._hosts[self._session_of[e.address]]) for e in self._sentinels.values()]

    def host_of(self, name: str) -> tuple[str, Any]:
        """The address of the sentinel of that name, and the host of its session.

        Raises:
            NoSuchSentinelError: there is none.
        """
        with self._lock:
            for entry in self._sentinels.values():
                if entry.name == name:
                    return entry.address, self._hosts[self._session_of[entry.address]]
            known = ", ".join(sorted(repr(entry.name) for entry in self._sentinels.values())) or "none"
        raise NoSuchSentinelError(f"no sentinel {name!r} is at work in {self._network!r}; there are: {known}")

    def session_host(self, address: str) -> Any:
        """The host of the session of the sentinel at that address; None if there is none."""
        with self._lock:
            return self._hosts.get(self._session_of.get(address, ""))

    def report(self, record: Any) -> None:
        """Have every session hear of something."""
        report = serialize(record)
        for host in self.hosts().values():
            host.report.remote(report)

    def note(self, record: EpochDone | RoundDone) -> None:
        """A sentinel has told how it does."""
        with self._lock:
            for entry in self._sentinels.values():
                if entry.name == record.sentinel:
                    entry.last = record


def _unlisted(hosts: Mapping[str, Any], network: str, known: Iterable[NetworkInfo]) -> dict[str, Any]:
    """Hosts that no way in leads to, by name; the spare ones, which none leads to, are not among them."""
    listed = [handle for info in known for handle in info.hosts.values()]
    spare = f"host/{network}/{SPARE}/"
    return {n: handle for n, handle in hosts.items() if handle not in listed and not n.startswith(spare)}


class Statuses:
    """How gates are, as they told last. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._told = threading.Condition()
        self._latest: dict[str, GateStatus] = {}  # by address
        self._heard: dict[str, tuple[float, int]] = {}  # when each had which version
        self._rates: dict[str, float] = {}  # updates/s

    def hear(self, status: GateStatus) -> None:
        """A gate tells how it is."""
        now_s, address = time.monotonic(), status.address
        with self._told:
            self._latest[address] = status
            self._told.notify_all()
            then_s, version = self._heard.setdefault(address, (now_s, status.version))
            if now_s - then_s >= RATE_S:
                self._rates[address] = (status.version - version) / (now_s - then_s)
                self._heard[address] = (now_s, status.version)

    def keep(self, gates: Iterable[str]) -> None:
        """Forget all other gates."""
        with self._told:
            for known in (self._latest, self._heard, self._rates):
                for gate in known.keys() - set(gates):
                    del known[gate]

    def of(self, gate: str) -> tuple[GateStatus | None, float]:
        """The latest that a gate told, and its updates/s."""
        with self._told:
            return self._latest.get(gate), self._rates.get(gate, 0.0)

    def versions(self) -> dict[str, int]:
        """The version that each gate told last."""
        with self._told:
            return {address: status.version for address, status in self._latest.items()}

    def wait_for(self, gates: Iterable[str], question: int, timeout_s: float) -> None:
        """Wait until all of these gates have answered a question, or not any longer."""
        gates = list(gates)
        with self._told:
            self._told.wait_for(lambda: all(self._answered(gate) >= question for gate in gates), timeout_s)

    def _answered(self, gate: str) -> int:
        """The latest question that a gate has answered; those of registrars are below 0."""
        return -self._latest[gate].probe if gate in self._latest else 0
