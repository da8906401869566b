"""One world, several schedules: the asynchronous row through the simulator, the others by timetable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from akkordeon.core.messages import Attach
from akkordeon.core.reports import ActorLost, ActorReturned
from akkordeon.engines.simulator.engine import Simulator
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import Links
from akkordeon.engines.timeline import Timeline
from akkordeon.experiments.schedules.dry_actors import DryRow, Restart, dry_row
from akkordeon.experiments.schedules.synchronous import LOCKSTEP, data_parallel, in_lockstep
from akkordeon.experiments.schedules.world import ScheduleOutcome, World

__all__ = ["SCHEDULES", "asynchronous", "compare", "enough_in_flight"]

SCHEDULES = (*LOCKSTEP, "data parallel", "asynchronous")
"""The names of all that can be compared."""


class _Restarter:
    """Has the sentinels begin again when a gate is back; counts what the gate's old weights had more."""

    def __init__(self, engine: Simulator) -> None:
        self.engine = engine
        self.row = DryRow()
        self.checkpoint: dict[str, int] = {}  # versions
        self.rolled_back = 0

    def __call__(self, record: Any) -> None:
        if isinstance(record, ActorLost) and record.address in self.row.gates:
            version = self.row.gates[record.address].version
            self.rolled_back += version - self.checkpoint.get(record.address, 0)
            self.checkpoint[record.address] = 0
        elif isinstance(record, ActorReturned) and record.address in self.row.gates:
            for sentinel in self.row.trainers:
                self.engine.send(sentinel, Restart())

    def make_checkpoint(self) -> None:
        """Remember how far every gate has come."""
        self.checkpoint = {address: gate.version for address, gate in self.row.gates.items()}


def asynchronous(
    world: World, in_flight: int, sentinels: int = 1, timeline: Timeline | None = None
) -> ScheduleOutcome:
    """The asynchronous row, dry: backward before forward, an update after every backward, no flush.

    Three gates, three batches in flight::

        0   F0 F1 F2 .  .  B0 F3 B1 F4 B2 F5 B3 F6 B4
        1   .  F0 F1 F2 B0 .  B1 F3 B2 F4 B3 F5 B4 F6
        2   .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5

    The sentinel stands beside the last gate, which in a synchronous row has the labels.

    Args:
        world: where it happens.
        in_flight: batches under way, of each of
        sentinels: so many.
        timeline: filled with what everybody did.
    """
    engine = Simulator(
        world.seed,
        links=Links(world.link),
        compute=world.compute,
        faults=world.faults,
        hosts=[Host("tail", (world.row[-1], "sentinel/*"))],
    )
    engine.timeline = timeline
    restarter = _Restarter(engine)
    engine.start(restarter, 0)
    try:
        size = world.bytes_between
        row = restarter.row = dry_row(engine.spawn, len(world.costs), sentinels, in_flight, None, size, size)
        for address in row.trainers:
            engine.send(address, Attach())
        while engine.now_s() < world.seconds:
            left_s = world.seconds - engine.now_s()
            engine.wait_until(lambda: False, min(world.checkpoint_every_s, left_s))
            restarter.make_checkpoint()
        loads = engine.loads()
        redone = restarter.rolled_back * world.samples // len(world.costs)  # by one gate of all
        return ScheduleOutcome(
            "asynchronous",
            world.seconds,
            row.trained * world.samples - redone,
            redone=redone,
            lost=sum(trainer.batches.lost for trainer in row.trainers.values()),
            busy=[loads[a].busy_s / world.seconds if a in loads else 0.0 for a in world.row],
            staleness=[dict(row.gates[a].staleness_seen) for a in world.row],
            bytes_by_link={(a, b): wire.bytes for a, b, wire in engine.wires()},
            events=engine.events,
        )
    finally:
        engine.stop()


def enough_in_flight(world: World, share: float = 0.95, most: int = 512) -> int:
    """The fewest batches in flight that hide the links: within ``share`` of what ``most`` would give."""
    best = asynchronous(world, most).samples_per_s
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if asynchronous(world, middle).samples_per_s >= share * best:
            high = middle
        else:
            low = middle + 1
    return low


def compare(
    world: World,
    in_flight: int,
    micros: int,
    schedules: Sequence[str] = SCHEDULES,
    sentinels: int = 1,
    timeline: Timeline | None = None,
) -> list[ScheduleOutcome]:
    """What every schedule makes of the world.

    Args:
        world: where it happens.
        in_flight: of the asynchronous row.
        micros: micro-batches between two updates of the synchronous ones.
        schedules: which; data parallelism is left out where gates crash, as it has none.
        sentinels: of the asynchronous row.
        timeline: of the asynchronous row.
    """
    found = []
    for name in schedules:
        if name == "asynchronous":
            found.append(asynchronous(world, in_flight, sentinels, timeline))
        elif name == "data parallel":
            if not world.faults:
                found.append(data_parallel(world, micros))
        else:
            found.append(in_lockstep(world, name, micros))
    return found
