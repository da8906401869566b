"""Faults at work in a simulation: when each happens, to whom, and what it cuts off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from random import Random

from akkordeon.engines.simulator.faults import Crash, Freeze, Partition, SimulatedFault
from akkordeon.engines.simulator.links import Shipment, Wire
from akkordeon.engines.simulator.sites import Site, SiteCell

__all__ = ["Outages"]


class Outages:
    """Has a simulation's faults happen.

    Args:
        faults: all of them.
        seed: of their times and victims.
        at: has something called at a time.
        crash: takes an actor away, for how long, and why.
        freeze: stops an actor for so long.
        ship: has a message arrive.
        cells: of the living actors, by address.
    """

    def __init__(
        self,
        faults: Sequence[SimulatedFault],
        seed: str,
        at: Callable[..., None],
        crash: Callable[[SiteCell, float | None, str], None],
        freeze: Callable[[SiteCell, float], None],
        ship: Callable[[Wire, Shipment], None],
        cells: Mapping[str, SiteCell],
    ) -> None:
        self._at = at
        self._crash = crash
        self._freeze = freeze
        self._ship = ship
        self._cells = cells
        self.partitions: list[tuple[Partition, float]] = []
        """Those there are now, and until when."""
        self.keep_s = max((fault.again_s for fault in faults if isinstance(fault, Partition)), default=0.0)
        """How long wires keep what has arrived."""
        for i, fault in enumerate(faults):
            rng = Random(f"{seed} fault {i}")
            self._expect(fault, fault.times(rng, _lasts_s(fault)), rng)

    def _expect(self, fault: SimulatedFault, times: Iterator[float], rng: Random) -> None:
        time_s = next(times, None)
        if time_s is not None:
            self._at(time_s, self._happen, fault, time_s, times, rng)

    def _happen(self, fault: SimulatedFault, now_s: float, times: Iterator[float], rng: Random) -> None:
        if isinstance(fault, Partition):
            self._cut_off(fault, now_s, rng)
        else:
            for cell in self._victims(fault, rng):
                if isinstance(fault, Crash):
                    self._crash(cell, fault.back_after_s, "it crashed")
                else:
                    self._freeze(cell, fault.for_s)
        self._expect(fault, times, rng)

    def _victims(self, fault: Crash | Freeze, rng: Random) -> list[SiteCell]:
        """All that the fault names; one of them at random (a host as one) if it comes at a rate."""
        hosts = [cell.site.host.name for cell in self._cells.values()]
        names = list(dict.fromkeys(n for n in (*hosts, *self._cells) if fnmatchcase(n, fault.who)))
        if fault.every_s is not None and names:
            names = [rng.choice(names)]
        chosen = set(names)
        return [c for a, c in self._cells.items() if a in chosen or c.site.host.name in chosen]

    # ── partitions ───────────────────────────────────────────────────────────────────────────────────

    def _cut_off(self, partition: Partition, now_s: float, rng: Random) -> None:
        healed_s = now_s + partition.heal_after_s
        self.partitions.append((partition, healed_s))
        self._at(healed_s, self._heal, healed_s)
        if partition.again_s:
            self._ship_again(partition, now_s, healed_s, rng)
        if partition.heal_after_s > partition.patience_s:
            self._at(now_s + partition.patience_s, self._give_up, partition)

    def _ship_again(self, partition: Partition, now_s: float, healed_s: float, rng: Random) -> None:
        """Have what was not acknowledged arrive again, ahead of all that is sent from now on."""
        for here in dict.fromkeys(cell.site for cell in self._cells.values()):
            for there, wire in here.wires.items():
                if wire is not None and _is_between(partition, here, there):
                    since_s = now_s - partition.again_s * rng.random()
                    for shipment in wire.ship_again(since_s, now_s, healed_s):
                        self._ship(wire, shipment)

    def _heal(self, now_s: float) -> None:
        self.partitions = [(p, until_s) for p, until_s in self.partitions if until_s > now_s]

    def _give_up(self, partition: Partition) -> None:
        for cell in list(self._cells.values()):
            if _on_side(cell.site, partition.other):
                self._crash(cell, None, f"it was cut off for {partition.patience_s:g} s")

    def healed_s(self, here: Site, there: Site) -> float:
        """When nothing is between these two any more; 0 if nothing is now."""
        return max(
            (until_s for partition, until_s in self.partitions if _is_between(partition, here, there)),
            default=0.0,
        )


def _is_between(partition: Partition, here: Site, there: Site) -> bool:
    return (_on_side(here, partition.one) and _on_side(there, partition.other)) or (
        _on_side(here, partition.other) and _on_side(there, partition.one)
    )


def _on_side(site: Site, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in site.key)


def _lasts_s(fault: SimulatedFault) -> float:
    if isinstance(fault, Crash):
        return fault.back_after_s or 0.0
    return fault.heal_after_s if isinstance(fault, Partition) else fault.for_s
