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

    found = plan_task(config, hosts, costs)
    if save_costs is not None:
        files.save_costs(found.costs, save_costs)
    Console().print(_table(found))
    say(found.why)
    if json is not None:
        files.write_json(found.as_json(), json)


def _table(found: Any) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("gates", "replicas", "hosts", "in\nflight", "push\nevery", "pushed\nas", "samples\na second",
                 "mean\nτ", "MB\na host", "bytes\na sample"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for each in found.layouts:
        best = each is found.best
        table.add_row(
            *_cells(each, "▶ " if best else ""), style="bold" if best else "" if each.fits else "red"
        )
    return table


def _cells(forecast: Any, mark: str) -> list[str]:
    layout = forecast.layout
    return [
        f"{mark}{layout.gates}",
        f"{layout.replicas or ''}",
        f"{len(layout.hosts)}",
        f"{layout.in_flight}",
        f"{layout.push_every or ''}",
        layout.compression or "",
        f"{forecast.samples_per_s:,.0f}",
        f"{forecast.staleness:.1f}",
        f"{max(forecast.memory_bytes.values()) / 1e6:,.1f}",
        f"{forecast.bytes_per_sample:,.0f}",
    ]
