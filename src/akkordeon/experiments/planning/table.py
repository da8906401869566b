"""A plan as a table: a row for each layout, and of the columns those in which something is said."""

from __future__ import annotations

from collections.abc import Sequence

from akkordeon.experiments.planning.dry_run import Forecast

__all__ = ["table_of_layouts"]


def table_of_layouts(layouts: Sequence[Forecast]) -> tuple[list[str], list[list[str]]]:
    """The headings, some of two lines, and the cells of each layout."""
    cells = [_cells(each) for each in layouts]
    said = [name for name in (cells[0] if cells else ()) if any(row[name] for row in cells)]
    return said, [[row[name] for name in said] for row in cells]


def _cells(forecast: Forecast) -> dict[str, str]:
    """What is said of a layout, by column; nothing where it is as usual."""
    layout, hosts = forecast.layout, len(forecast.layout.hosts)
    return {
        "gates": f"{layout.gates}",
        "threads": f"{layout.intra_op_threads}" if layout.intra_op_threads > 1 else "",
        "replicas": f"{layout.replicas or ''}",
        "hosts": f"{hosts}" if hosts > 1 else "",
        "in\nflight": f"{layout.in_flight}",
        "update\nof": "" if layout.schedule == "async" else f"{layout.micro_batches} {layout.schedule}",
        "push\nevery": f"{layout.push_every or ''}",
        "sent\nas": "int8" if layout.int8 else layout.compression or "",
        "samples\na second": f"{forecast.samples_per_s:,.0f}",
        "mean\nτ": f"{forecast.staleness:.1f}",
        "MB\na host": f"{max(forecast.memory_bytes.values()) / 1e6:,.0f}",
        "KB\na sample": f"{forecast.bytes_per_sample / 1e3:,.1f}" if hosts > 1 else "",
    }
