"""The command that plans: layouts of a task on hosts, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from akkordeon.cli.errors import say
from akkordeon.cli.options import with_settings
from akkordeon.experiments.config import TrainConfig

__all__ = ["plan"]

OF_THE_MODEL = ("task", "data_dir", "batch_size", "staleness", "optimizer", "lr", "seed")


@with_settings(only=OF_THE_MODEL)
def plan(
    config: TrainConfig,
    hosts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Hosts and links, see examples/hosts; this machine alone if not given."
        ),
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Costs measured elsewhere, by --save-costs.")
    ] = None,
    save_costs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what was measured here.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures here.")] = None,
) -> None:
    """Find how to lay a task's network out on hosts: costs measured here, layouts run dry in the simulator.

    `akkordeon train --auto` takes what is best on this machine.
    """
    from rich.console import Console

    from akkordeon.experiments.planning import costs as files
    from akkordeon.experiments.planning.settings import plan_task

    elsewhere = None if save_costs is None else files.COMPRESSIONS
    found = plan_task(config, hosts, costs, elsewhere)
    if save_costs is not None:
        files.save_costs(found.costs, save_costs)
    Console().print(_table(found))
    say(found.why)
    if json is not None:
        files.write_json(found.as_json(), json)


def _table(found: Any) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    cells = [_cells(each, "▶ " if each is found.best else "") for each in found.layouts]
    said = [name for name in cells[0] if any(row[name] for row in cells)]
    for name in said:
        table.add_column(name, justify="right", no_wrap=True)
    for each, row in zip(found.layouts, cells, strict=True):
        style = "bold" if each is found.best else "" if each.fits else "red"
        table.add_row(*(row[name] for name in said), style=style)
    return table


def _cells(forecast: Any, mark: str) -> dict[str, str]:
    """What is said of a layout, by column; nothing where it is as usual."""
    layout, hosts = forecast.layout, len(forecast.layout.hosts)
    return {
        "gates": f"{mark}{layout.gates}",
        "threads": f"{layout.intra_op_threads}" if layout.intra_op_threads > 1 else "",
        "replicas": f"{layout.replicas or ''}",
        "hosts": f"{hosts}" if hosts > 1 else "",
        "in\nflight": f"{layout.in_flight}",
        "push\nevery": f"{layout.push_every or ''}",
        "sent\nas": "int8" if layout.int8 else layout.compression or "",
        "samples\na second": f"{forecast.samples_per_s:,.0f}",
        "mean\nτ": f"{forecast.staleness:.1f}",
        "MB\na host": f"{max(forecast.memory_bytes.values()) / 1e6:,.0f}",
        "KB\na sample": f"{forecast.bytes_per_sample / 1e3:,.1f}" if hosts > 1 else "",
    }
