"""What gates have measured of their stale gradients, a row for each.

gate    τ mean  τ max  measured  cosine    min  correction    max  copies   MB
gate/0     2.0      3        48   0.981  0.902       0.112  0.345       4  1.2
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["diagnosis_lines"]

HEADINGS = (
    "gate", "τ mean", "τ max", "measured", "cosine", "min", "correction", "max", "copies", "MB",
)  # fmt: skip


def diagnosis_lines(gates: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table of those gates of a summary that measure, then the τ that each saw; empty where none does.

    Args:
        gates: as :func:`akkordeon.watch.summary.summary` has them.
    """
    measured = [gate for gate in gates if "diagnosis" in gate]
    if not measured:
        return []
    rows = [HEADINGS, *map(_row, measured)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    lines += [f"{gate['name']}  τ {_seen(gate['staleness'])}" for gate in measured]
    for gate in measured:
        failed, why = gate["diagnosis"]["failed"], gate["diagnosis"]["why"]
        if failed:
            lines.append(f"{gate['name']}  {failed:,} batches could not be measured: {why}")
    return lines


def _row(gate: Mapping[str, Any]) -> tuple[str, ...]:
    found = gate["diagnosis"]
    shares = ("cosine_mean", "cosine_min", "correction_mean", "correction_max")
    return (
        gate["name"],
        f"{gate['staleness_mean']:.1f}",
        f"{gate['staleness_max']}",
        f"{found['batches']:,}",
        *("-" if found[name] is None else f"{found[name]:.3f}" for name in shares),
        f"{found['copies_max']}",
        f"{found['bytes_max'] / 1e6:,.1f}",
    )


def _seen(staleness: Mapping[str, int]) -> str:
    return ", ".join(f"{tau}: {count:,}" for tau, count in staleness.items()) or "none"
