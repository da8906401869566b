"""A row for each parameter shard in the live view.

         τ 0 1                               pushes  fetches  MB/s  MB/s
shard    2–3 4–7 …  version  τ max  dropped      /s       /s    in   out  busy
shard/0  ▂█▄▁         1,208      9        3     231      231  18.4  18.4   61%
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from rich.table import Table

from akkordeon.core.reports import ShardStatus
from akkordeon.session.status import Status, staleness_classes
from akkordeon.watch.rate import Rate

__all__ = ["ShardTable", "histogram"]

BARS = " ▁▂▃▄▅▆▇█"
HEADINGS = ("version", "τ max", "dropped", "pushes\n/s", "fetches\n/s", "MB/s\nin", "MB/s\nout", "busy")
"""In two lines, so that all of them fit a terminal of 80 columns."""


class ShardTable:
    """Draws shards; knows how fast their numbers grow."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], Rate] = defaultdict(Rate)

    def fits(self, status: Status) -> bool:
        """Whether what cuts are made of are shards."""
        return any(isinstance(gate, ShardStatus) for gate in status.gates)

    def table(self, status: Status) -> Table:
        """A row for each shard."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("shard", no_wrap=True, min_width=max(len(shard.name) for shard in status.gates))
        table.add_column("τ 0 1\n2–3 4–7 …", style="cyan")
        for heading in HEADINGS:
            table.add_column(heading, justify="right")
        for shard in status.gates:
            if isinstance(shard, ShardStatus):
                table.add_row(*self._row(shard, status))
        return table

    def _row(self, shard: ShardStatus, status: Status) -> list[str]:
        load = status.loads.get(shard.address)
        grow = {
            "pushes": shard.pushes,
            "fetches": shard.fetches,
            "in": shard.bytes_in / 1e6,
            "out": shard.bytes_out / 1e6,
            "busy": load.busy_s if load is not None else 0.0,
        }
        for what, number in grow.items():
            self._rates[shard.address, what].add(status.now_s, number)
        rate = {what: self._rates[shard.address, what].per_s for what in grow}
        return [
            shard.name,
            histogram(shard.staleness),
            f"{shard.version:,}",
            str(shard.staleness_max),
            f"{sum(shard.refused.values()):,}",
            f"{rate['pushes']:,.0f}",
            f"{rate['fetches']:,.0f}",
            f"{rate['in']:,.1f}",
            f"{rate['out']:,.1f}",
            f"{min(1.0, rate['busy']):.0%}",
        ]


def histogram(staleness: Mapping[int, int]) -> str:
    """How often τ was 0, 1, 2–3, 4–7, and so on, a bar each; what was seen is never blank."""
    classes = staleness_classes(staleness)
    most = max(classes)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] if most else " " for count in classes)
