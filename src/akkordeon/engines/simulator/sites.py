"""Where actors stand in a simulation: cells with a mailbox each, on sites with cores."""

from __future__ import annotations

import math
from collections import deque

from akkordeon.core.actor import Actor, Spawn
from akkordeon.engines.interpreter import Cell
from akkordeon.engines.simulator.compute import Work
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import Port, Wire

__all__ = ["Site", "SiteCell"]


class Site:
    """A host, and who waits there for a core."""

    __slots__ = ("arrivals", "departures", "free", "host", "key", "ready", "wires")

    def __init__(self, host: Host) -> None:
        self.host = host
        self.key = (host.name, host.zone)
        self.free: float = math.inf if host.cores is None else host.cores
        self.departures, self.arrivals = _ports(host), _ports(host)
        self.ready: deque[SiteCell] = deque()
        self.wires: dict[Site, Wire | None] = {}  # to other sites; None where nothing takes time


class SiteCell(Cell):
    """A cell on a site, and how long it was frozen there."""

    __slots__ = ("at_work", "frozen_s", "frozen_until_s", "site", "spawn", "work")

    def __init__(self, actor: Actor, spawn: Spawn, site: Site, work: Work | None) -> None:
        super().__init__(actor)
        self.spawn = spawn
        self.site = site
        self.work = work  # None where nothing takes time
        self.at_work = False
        self.frozen_until_s = 0.0
        self.frozen_s = 0.0  # how long it was frozen, all times together


def _ports(host: Host) -> tuple[Port, ...]:
    return () if host.bytes_per_s is None else (Port(host.bytes_per_s),)
