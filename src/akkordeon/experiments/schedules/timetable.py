"""Synchronous schedules to compare with: who does what in which order, as pure functions.

Legend: F2 the forward of micro-batch 2, B2 its backward, U the update with the gradients of all of them.
A schedule is a list with one list of operations for every device; :func:`timetable` says when each
happens: as soon as its device is free and what it needs has come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = [
    "Op",
    "Slot",
    "all_reduce_s",
    "gpipe",
    "one_device",
    "one_f_one_b",
    "timetable",
]


class Op(NamedTuple):
    """One operation: what, on which stage of the model, for which micro-batch (-1 for an update)."""

    what: Literal["F", "B", "U"]
    stage: int
    micro: int = -1


Schedule = list[list[Op]]


def one_device(stages: int, micros: int) -> Schedule:
    """One device does every stage of one micro-batch after the other.

    Three stages, two micro-batches::

        0   F0 F0 F0 B0 B0 B0 F1 F1 F1 B1 B1 B1 U  U  U
    """
    operations = []
    for i in range(micros):
        operations += [Op("F", k, i) for k in range(stages)]
        operations += [Op("B", k, i) for k in reversed(range(stages))]
    return [operations + [Op("U", k) for k in range(stages)]]


def gpipe(stages: int, micros: int) -> Schedule:
    """GPipe (Huang et al. 2019): all forwards, all backwards, one update.

    Three stages, four micro-batches::

        0   F0 F1 F2 F3 .  .  .  .  B3 B2 B1 B0 U
        1   .  F0 F1 F2 F3 .  .  B3 B2 B1 B0 U  .
        2   .  .  F0 F1 F2 F3 B3 B2 B1 B0 U  .  .
    """
    forwards = range(micros)
    return [
        [*(Op("F", k, i) for i in forwards), *(Op("B", k, i) for i in reversed(forwards)), Op("U", k)]
        for k in range(stages)
    ]


def one_f_one_b(stages: int, micros: int) -> Schedule:
    """1F1B with flush (PipeDream-flush, Narayanan et al. 2021): as few activations as stages.

    Three stages, four micro-batches::

        0   F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3 U
        1   .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 U  .
        2   .  .  F0 B0 F1 B1 F2 B2 F3 B3 U  .  .
    """
    schedule = []
    for k in range(stages):
        warm = min(stages - k, micros)
        operations = [Op("F", k, i) for i in range(warm)]
        for i in range(micros):
            operations.append(Op("B", k, i))
            if warm + i < micros:
                operations.append(Op("F", k, warm + i))
        schedule.append([*operations, Op("U", k)])
    return schedule


@dataclass(frozen=True, slots=True)
class Slot:
    """When a device does an operation."""

    device: int
    op: Op
    begin_s: float
    end_s: float


def timetable(
    schedule: Schedule,
    seconds: Callable[[Op, float], float],
    hop: Callable[[int, int, float], float] = lambda a, b, now_s: now_s,
    begin_s: Sequence[float] | float = 0.0,
) -> list[Slot]:
    """When everything happens.

    Args:
        schedule: the order on every device.
        seconds: how long an operation takes that begins at a time.
        hop: when something sent from one device to another at a time arrives there.
        begin_s: when the devices are free, one time or one for each.

    Raises:
        ValueError: the schedule waits for itself.
    """
    free_s = [begin_s] * len(schedule) if isinstance(begin_s, int | float) else list(begin_s)
    where = {op: d for d, operations in enumerate(schedule) for op in operations}
    stages = 1 + max(op.stage for op in where)
    done: dict[Op, float] = {}
    arrived: dict[tuple[Op, int], float] = {}
    slots: list[Slot] = []
    left = [list(reversed(operations)) for operations in schedule]
    while any(left):
        ready = []
        for device, operations in enumerate(left):
            if operations and all(need in done for need in _needs(operations[-1], stages)):
                comes_s = free_s[device]
                for need in _needs(operations[-1], stages):
                    if where[need] == device:
                        comes_s = max(comes_s, done[need])
                    else:
                        comes_s = max(comes_s, arrived[need, device])
                ready.append((comes_s, device))
        if not ready:
            raise ValueError(f"the schedule waits for itself: {[str(ops[-1]) for ops in left if ops]}")
        begins_s, device = min(ready)
        op = left[device].pop()
        end_s = begins_s + seconds(op, begins_s)
        free_s[device] = done[op] = end_s
        slots.append(Slot(device, op, begins_s, end_s))
        for follower in _followers(op, stages):
            other = where.get(follower)
            if other is not None and other != device:
                arrived[op, other] = hop(device, other, end_s)
    return slots


def _needs(op: Op, stages: int) -> list[Op]:
    """What must have happened before: the same micro-batch one stage earlier."""
    if op.what == "F":
        return [Op("F", op.stage - 1, op.micro)] if op.stage else []
    if op.what == "B":
        later = [Op("B", op.stage + 1, op.micro)] if op.stage + 1 < stages else []
        return [Op("F", op.stage, op.micro), *later]
    return []


def _followers(op: Op, stages: int) -> list[Op]:
    if op.what == "F" and op.stage + 1 < stages:
        return [Op("F", op.stage + 1, op.micro)]
    return [Op("B", op.stage - 1, op.micro)] if op.what == "B" and op.stage else []


def all_reduce_s(workers: int, size: int, latency_s: float, bytes_per_s: float) -> float:
    """Seconds of a ring all-reduce: 2(W-1) steps, each of one W-th of the bytes.

    Four workers, the parts a b c d of the gradients; ``+`` adds what comes, ``=`` takes it over::

        0   a→ d+ c+ b= a= d=
        1   b→ a+ d+ c= b= a=
        2   c→ b+ a+ d= c= b=
        3   d→ c+ b+ a= d= c=
    """
    if workers == 1:
        return 0.0
    return 2 * (workers - 1) * (latency_s + size / workers / bytes_per_s)
