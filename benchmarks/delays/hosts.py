"""Seconds of an update on eight hosts, a gate on each, in virtual time: 1F1B by timetable, ours as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from emulated import Late
from kept import Kept
from ways import Way, batches_of, micro_batches

import akkordeon as ak
from akkordeon.engines.simulator import Compute, Cost, Host, Link
from akkordeon.engines.simulator.compute import Slowdown
from akkordeon.engines.timeline import Span
from akkordeon.experiments.presets import optimizer_named
from akkordeon.experiments.schedules.measure_costs import measure_costs
from akkordeon.experiments.schedules.synchronous import in_lockstep
from akkordeon.experiments.schedules.world import World

__all__ = ["LINKS", "Hosts", "Place"]

MESSAGE_S = 0.0005
"""Of a call of Ray's, and as much for a message of 1F1B."""

SHARE = 1448 / 1514
"""Of what is sent on Ethernet, the rest is headers."""

LOCKSTEP_S = 200.0
"""Virtual seconds that timetables are run for."""

WARM, MEASURED, ROUNDS = 5, 20, 3
"""Batches that costs are measured on in a round; the fastest counts, as others only slow it."""

FAST, FAR = Link(0.0002, 125e6 * SHARE), Link(0.02, 12.5e6 * SHARE)


@dataclass(frozen=True)
class Place:
    """What the hosts are like.

    Attributes:
        link: between any two of them; its latency is one way.
        slowdowns: of gates.
    """

    link: Link
    slowdowns: Sequence[Slowdown] = ()


LINKS = {
    "1 Gbit/s, 0.2 ms": Place(FAST),
    "100 Mbit/s, 20 ms": Place(FAR),
    "1 Gbit/s, 0.2 ms, the fourth host at half speed": Place(FAST, (Slowdown("gate/3", 2),)),
}


class Hosts:
    """What updates take there.

    Args:
        task: of the row.
        optimizer: of the gates, by name.
        kept: what was found before.
        updates: of a run that is timed; one of twice as many is run as well.
    """

    def __init__(self, task: ak.Task, optimizer: str, kept: Kept, updates: int) -> None:
        self._task, self._kept, self._updates = task, kept, updates
        self._optimizer = optimizer
        self._network = task.network.replacing(optimizer=optimizer_named(optimizer))

    def one_host_s(self) -> float:
        """Of an update on one of them alone, without messages."""
        return sum(sum(map(sum, _worked(table))) for table in self._costs(1).values())

    def lockstep_s(self, name: str, schedule: str, micros: int) -> float:
        """Of an update by the timetable of a peer at a place."""
        seconds: float = self._kept(
            lambda: self._by_timetable(LINKS[name], schedule, micros),
            place=name,
            timetable=schedule,
            micros=micros,
            optimizer=self._optimizer,
        )
        return seconds

    def _by_timetable(self, place: Place, schedule: str, micros: int) -> float:
        """Where the sentinel's loss is the last gate's work."""
        costs = self._costs(micros)
        loss_s = sum(costs["sentinel/*"]["Forward"])
        tables = [_gate_cost(costs[address]) for address in self._network.row()]
        forward_s, _ = tables[-1].table["Forward"]
        tables[-1] = Cost(table={**tables[-1].table, "Forward": (forward_s + loss_s, 0.0)})
        world = World(
            costs=tables,
            link=place.link,
            bytes_between=self._sent_bytes(micros),
            seconds=LOCKSTEP_S,
            slowdowns=place.slowdowns,
        )
        return LOCKSTEP_S * micros / in_lockstep(world, schedule, micros).samples

    def ours(self, name: str, way: Way) -> tuple[float, Late]:
        """Seconds of an update, and how late gradients are.

        Args:
            name: of the place.
            way: with ``async`` an update is timed as a share of it after each micro-batch.
        """
        update_s, late = self._kept(
            lambda: self._simulated(LINKS[name], way),
            place=name,
            way=str(way),
            optimizer=self._optimizer,
            updates=self._updates,
        )
        return update_s, tuple(map(tuple, late))

    def _simulated(self, place: Place, way: Way) -> tuple[float, list[tuple[int, ...]]]:
        (once_s, _), (twice_s, spans) = (self._ended(place, way, n * self._updates) for n in (1, 2))
        # The session may end while the first gate still makes its last update: it has a backward less then.
        late = list(zip(*(_late(spans, gate) for gate in self._network.row()), strict=False))
        middle = self._updates * way.micros
        return (twice_s - once_s) / self._updates, late[middle // 2 : middle // 2 + middle]

    def _ended(self, place: Place, way: Way, updates: int) -> tuple[float, list[Span]]:
        """When so many updates were made, and who did what until then."""
        row, costs = self._network.row(), self._costs(way.micros)
        work = {address: _gate_cost(costs[address], way.micros) for address in row}
        work |= {each: Cost(table=costs[each]) for each in ("sentinel/*", "reader/*")}
        hosts = [Host(address, [address], cores=1) for address in row[:-1]]
        hosts.append(Host(row[-1], [row[-1], "sentinel/*", "reader/*"], cores=1))
        compute = Compute(work, place.slowdowns)
        engine = ak.Simulator(links=place.link, hosts=hosts, compute=compute, timeline=True)
        network = self._network if way.schedule == "async" else way.applied(self._network)
        batches = islice(batches_of(self._task, 0), updates)
        micros = [micro for batch in batches for micro in micro_batches(batch, way.micros)]
        with ak.run(network, engine) as session:
            session.attach(ak.Sentinel.train(micros, self._task.loss, in_flight=way.in_flight)).wait()
            assert engine.timeline is not None
            return engine.now_s(), engine.timeline.spans

    def _costs(self, micros: int) -> Mapping[str, Mapping[str, tuple[float, float]]]:
        """Seconds (before, after) the effects of a message, by address and its name, measured here once."""
        costs: Mapping[str, Mapping[str, tuple[float, float]]] = self._kept(
            lambda: self._measured(micros), costs=micros, optimizer=self._optimizer
        )
        return costs

    def _measured(self, micros: int) -> dict[str, dict[str, tuple[float, float]]]:
        batches = islice(batches_of(self._task, 0), WARM + MEASURED)
        some = [next(micro_batches(batch, micros)) for batch in batches]
        rounds = [measure_costs(self._network, some, self._task.loss, WARM) for _ in range(ROUNDS)]
        return {
            address: {
                name: min((each[address].table[name] for each in rounds), key=sum) for name in cost.table
            }
            for address, cost in rounds[0].items()
        }

    @torch.no_grad()
    def _sent_bytes(self, micros: int) -> int:
        """Of what a gate sends another for a micro-batch."""
        x, _ = next(micro_batches(next(batches_of(self._task, 0)), micros))
        return int(self._network.gates[0].module(x).nbytes)


def _late(spans: Sequence[Span], gate: str) -> list[int]:
    """How many later forwards each batch's backward came after, at a gate."""
    forwards: list[int] = []
    late: dict[int, int] = {}
    for span in sorted((each for each in spans if each.who == gate), key=lambda each: each.begin_s):
        if span.batch is None:
            continue
        if span.what == "forward":
            forwards.append(span.batch)
        elif span.what == "backward":
            late[span.batch] = len(forwards) - 1 - forwards.index(span.batch)
    return [late[batch] for batch in sorted(late)]


def _worked(table: Mapping[str, tuple[float, float]]) -> list[tuple[float, float]]:
    """What is computed for a batch; a reader and its messages are no work of a plain loop."""
    return [table[name] for name in ("Forward", "Backward") if name in table]


def _gate_cost(table: Mapping[str, tuple[float, float]], micros: int = 1) -> Cost:
    """Of a gate that makes an update after so many micro-batches: each has its share of it."""
    (forward_s, _), (backward_s, update_s) = table["Forward"], table["Backward"]
    return Cost(
        message_s=MESSAGE_S,
        table={
            "Forward": (MESSAGE_S + forward_s, 0.0),
            "Backward": (MESSAGE_S + backward_s, update_s / micros),
        },
    )
