"""What the registrar of a detached network tells: the way in, and how the network is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from akkordeon.core.reports import EpochDone, GateStatus, RoundDone
from akkordeon.core.surgery.messages import OF_RECIPE
from akkordeon.core.surgery.reports import Changed
from akkordeon.engines.ray.placement import Placement, host_of
from akkordeon.engines.ray.serialization import Serialized, deserialize, serialize

__all__ = [
    "GateEntry",
    "NetworkInfo",
    "NetworkStatus",
    "SentinelEntry",
    "changed",
    "with_row",
]


@dataclass(frozen=True)
class NetworkInfo:
    """What a session must know to join.

    Attributes:
        recipe: of the network.
        seed: of the network.
        hosts: handles by name.
        locations: address of the node and number of the process, by name of the host.
        places: name of the host, by address of the gate, head first.
        wire_dtype: see :class:`akkordeon.Ray`.
        placement: likewise.
        folders: where the process that started the network finds modules.
        recovery: makes what decides when gates come back, where they do.
        stages: what its gates began with, by address, where that is not the recipe's weights.
        description: how the network's task is made again, for those that keep its weights.
        edition: how often its row was changed.
        past: addresses of all gates that there ever were.
    """

    recipe: Serialized
    seed: int
    hosts: dict[str, Any]
    locations: dict[str, tuple[str, int]]
    places: dict[str, str]
    wire_dtype: Any = None
    placement: Placement = "spread"
    folders: tuple[str, ...] = ()
    recovery: Serialized | None = None
    stages: Serialized | None = None
    description: dict[str, Any] = field(default_factory=dict)
    edition: int = 0
    past: tuple[str, ...] = ()

    @property
    def row(self) -> tuple[str, ...]:
        """Addresses of the gates, head first."""
        return tuple(self.places)

    def away(self) -> list[str]:
        """Gates whose process is gone."""
        return [address for address, host in self.places.items() if host not in self.hosts]

    def silence(self, silent: Collection[str], seconds: float) -> str | None:
        """Which gates are in hosts that do not answer, in words; None if none is."""
        gates = [address for address, host in self.places.items() if host in silent]
        if not gates:
            return None
        node, pid = self.locations.get(self.places[gates[0]], ("?", 0))
        return f"{', '.join(gates)} has not answered for {seconds:g} s or more (number {pid} on {node})"

    def gates_in(self, hosts: Collection[Any]) -> int:
        """How many gates are in these hosts."""
        return sum(self.hosts.get(name) in hosts for name in self.places.values())

    def without_empty(self) -> NetworkInfo:
        """The way in to the processes alone that have gates of the row."""
        return replace(self, hosts={n: host for n, host in self.hosts.items() if n in self.places.values()})

    def without(self, name: str) -> NetworkInfo:
        """The way in where a process is gone."""
        return replace(self, hosts={each: handle for each, handle in self.hosts.items() if each != name})


def with_row(info: NetworkInfo, row: tuple[str, ...], recipe: Serialized) -> NetworkInfo:
    """The way in to a network whose row has other gates, without processes that have none any more."""
    places = {address: host_of(address, info.placement) for address in row}
    past = tuple({**dict.fromkeys(info.past), **info.places, **places})
    edition = info.edition + 1
    return replace(info, recipe=recipe, places=places, past=past, edition=edition).without_empty()


def changed(info: NetworkInfo, record: Changed) -> NetworkInfo:
    """The way in to a network where a gate was set to learn otherwise."""
    if record.settings.keys().isdisjoint(OF_RECIPE):
        return info
    network = deserialize(info.recipe, writable=True).changed(record.address, record.settings)
    return replace(info, recipe=serialize(network))


@dataclass(frozen=True)
class GateEntry:
    """A gate, as last heard of. ``node`` and ``pid``: where it is."""

    address: str
    node: str
    pid: int
    status: GateStatus | None
    updates_per_s: float


@dataclass
class SentinelEntry:
    """A sentinel, as last heard of."""

    name: str
    role: str
    address: str
    node: str
    pid: int
    answers: bool = False  # a question, of whose end nobody needs to hear
    has_begun: bool = False
    last: EpochDone | RoundDone | None = None

    @property
    def counts(self) -> str:
        """What one that trains has told of its batches, in words that end a sentence."""
        if not isinstance(self.last, EpochDone):
            return ""
        batches = self.last.batches_so_far
        refused = f", {batches.refused} refused" if batches.refused else ""
        return f" after epoch {self.last.epoch}: {batches.trained} batches trained{refused}"


@dataclass(frozen=True)
class NetworkStatus:
    """How a network is. ``events``: who ended or was lost of late, in words."""

    name: str
    gates: list[GateEntry]
    sentinels: list[SentinelEntry]
    failure: str | None
    events: list[str] = field(default_factory=list)
