"""Timetables of schedules as text, and what their devices leave undone."""

from __future__ import annotations

from collections.abc import Sequence

from akkordeon.experiments.schedules.timetable import Op, Slot


def draw(slots: Sequence[Slot], tick_s: float = 1.0) -> str:
    """The timetable as text, a column for every tick; ``.`` where nothing begins."""
    rows: dict[int, dict[int, str]] = {}
    for slot in slots:
        rows.setdefault(slot.device, {})[round(slot.begin_s / tick_s)] = _text(slot.op)
    ticks = range(1 + max(tick for row in rows.values() for tick in row))
    width = 1 + max(len(text) for row in rows.values() for text in row.values())
    lines = [
        f"{device}   " + "".join(f"{row.get(tick, '.'):<{width}}" for tick in ticks)
        for device, row in sorted(rows.items())
    ]
    return "\n".join(line.rstrip() for line in lines)


def _text(op: Op) -> str:
    return op.what + ("" if op.micro < 0 else str(op.micro))


def bubble(slots: Sequence[Slot]) -> float:
    """The share of the devices' time in which they do nothing.

    Of GPipe and of 1F1B with P stages and m micro-batches under equal costs it is (P-1)/(m+P-1).
    """
    devices = 1 + max(slot.device for slot in slots)
    span_s = max(s.end_s for s in slots) - min(s.begin_s for s in slots)
    return 1 - sum(s.end_s - s.begin_s for s in slots) / (devices * span_s)
