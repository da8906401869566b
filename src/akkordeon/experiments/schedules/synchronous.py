"""Synchronous schedules through the same world: the same costs, wires, stragglers and crashes.

Mini-batch after mini-batch, each by its timetable. A crash stops everybody until the gate is back, and
everybody goes back to the last checkpoint: the gates of a synchronous row have one version or none.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from akkordeon.engines.simulator.compute import Work
from akkordeon.engines.simulator.links import HERE, Wire
from akkordeon.experiments.schedules.timetable import (
    Op,
    Schedule,
    Slot,
    all_reduce_s,
    gpipe,
    one_device,
    one_f_one_b,
    timetable,
)
from akkordeon.experiments.schedules.world import ScheduleOutcome, World

__all__ = ["LOCKSTEP", "data_parallel", "in_lockstep"]

LOCKSTEP: dict[str, Callable[[int, int], Schedule]] = {
    "one device": one_device,
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
}


class _Sampled:
    """Costs and wires of a world, with the chance of their own that the simulator gives them."""

    def __init__(self, world: World) -> None:
        seed = f"{world.seed} 0"
        self.world = world
        self._works = [Work(world.compute, address, seed) for address in world.row]
        self._tables = [cost.by_message() for cost in world.costs]
        self._wires: dict[tuple[int, int], Wire] = {}
        self._seed = seed

    def seconds(self, op: Op, now_s: float) -> float:
        """How long a gate works on an operation that it begins now."""
        work = self._works[op.stage]
        if op.what == "F":
            return work.seconds_of("Forward", now_s)[0]
        before_s, after_s = work.seconds_of("Backward", now_s)
        return before_s if op.what == "B" else after_s

    def slowness(self, worker: int, now_s: float) -> float:
        """How many times slower a gate's machine is now."""
        return self._works[worker].factor(now_s)

    def arrival_s(self, a: int, b: int, now_s: float) -> float:
        """When something sent from a to b now is there."""
        if self.world.link == HERE:
            return now_s
        wire = self._wires.get((a, b))
        if wire is None:
            rng = Random(f"{self._seed} wire gate/{a} gate/{b}")
            wire = self._wires[a, b] = Wire(self.world.link, rng)
        return wire.arrival_s(self.world.bytes_between, now_s)

    def bytes_by_link(self) -> dict[tuple[str, str], int]:
        """What went over every wire."""
        return {(f"gate/{a}", f"gate/{b}"): wire.bytes for (a, b), wire in self._wires.items()}


def in_lockstep(world: World, name: str, micros: int) -> ScheduleOutcome:
    """Run a schedule for the world's time.

    Args:
        world: where it happens.
        name: a key of ``LOCKSTEP``.
        micros: micro-batches in a mini-batch.
    """
    sampled, stages = _Sampled(world), len(world.costs)
    schedule = LOCKSTEP[name](stages, micros)
    crashes = _crashes(world, len(schedule))
    out = ScheduleOutcome(name, world.seconds, 0)
    busy_s = [0.0] * len(schedule)
    free_s = [0.0] * len(schedule)
    kept, since = 0, 0  # mini-batches in the last checkpoint, and after it
    checkpoint_s = world.checkpoint_every_s
    while min(free_s) < world.seconds:
        slots = timetable(schedule, sampled.seconds, sampled.arrival_s, free_s)
        end_s = max(slot.end_s for slot in slots)
        while crashes and crashes[0][1] <= min(free_s):  # while everybody waited: nothing more is lost
            crashes.pop(0)
        if crashes and crashes[0][0] < end_s:
            _, back_s = crashes.pop(0)
            out.redone += since * micros * world.samples
            out.lost += micros
            since, free_s = 0, [back_s] * len(schedule)
            continue
        if end_s > world.seconds:
            break
        since += 1
        for slot in slots:
            busy_s[slot.device] += slot.end_s - slot.begin_s
        free_s = _free_s(slots, len(schedule))
        if end_s >= checkpoint_s:
            kept, since = kept + since, 0
            checkpoint_s += world.checkpoint_every_s * (
                1 + (end_s - checkpoint_s) // world.checkpoint_every_s
            )
    out.samples = (kept + since) * micros * world.samples
    out.busy = [seconds / world.seconds for seconds in busy_s]
    out.bytes_by_link = sampled.bytes_by_link()
    return out


def data_parallel(world: World, micros: int) -> ScheduleOutcome:
    """As many workers as the world has gates, each with the whole model and its share of the micro-batches.

    All-reduce of the gradients after every mini-batch, as a ring, not hidden behind the backward. F and B
    are of the whole model::

        0   F0 B0 F4 B4 =====all-reduce===== U
        1   F1 B1 F5 B5 =====all-reduce===== U
        2   F2 B2 F6 B6 =====all-reduce===== U
        3   F3 B3 F7 B7 =====all-reduce===== U
    """
    workers, sampled = len(world.costs), _Sampled(world)
    link = world.link
    latency_s = link.latency_s if isinstance(link.latency_s, int | float) else link.latency_s.draw(Random(0))
    reduce_s = all_reduce_s(workers, world.weight_bytes, latency_s, link.bytes_per_s or float("inf"))
    share = -(-micros // workers)
    now_s, done, busy_s = 0.0, 0, 0.0
    while True:
        ends_s = [_whole_model(world, sampled, w, share, now_s) for w in range(workers)]
        end_s = max(ends_s) + reduce_s + sum(cost.by_message()["Backward"][1] for cost in world.costs)
        if end_s > world.seconds:
            break
        busy_s += sum(ends_s) / workers - now_s
        now_s, done = end_s, done + 1
    samples = done * share * workers * world.samples
    return ScheduleOutcome("data parallel", world.seconds, samples, busy=[busy_s / world.seconds] * workers)


def _whole_model(world: World, sampled: _Sampled, worker: int, share: int, now_s: float) -> float:
    """When a worker, as fast or slow as the gate of its number, has its gradients."""
    for _ in range(share):
        for cost in world.costs:
            table = cost.by_message()
            seconds = table["Forward"][0] + table["Backward"][0]
            now_s += seconds * sampled.slowness(worker, now_s)
    return now_s


def _crashes(world: World, devices: int) -> list[tuple[float, float]]:
    """(from, until) of every crash within the world's time.

    Those that come at a rate hit one gate of all; one device alone has its share of them.
    """
    found = []
    for i, crash in enumerate(world.crashes):
        down_s = crash.back_after_s if crash.back_after_s is not None else float("inf")
        spared = Random(f"{world.seed} spared {i}")
        share = devices / len(world.costs) if crash.every_s is not None else 1.0
        for at_s in crash.times(Random(f"{world.seed} 0 fault {i}"), down_s):
            if at_s > world.seconds:
                break
            if spared.random() >= share:
                continue
            found.append((at_s, at_s + down_s))
    return sorted(found)


def _free_s(slots: list[Slot], devices: int) -> list[float]:
    return [max(slot.end_s for slot in slots if slot.device == d) for d in range(devices)]
