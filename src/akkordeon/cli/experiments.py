"""The commands that try before one trains, layouts and rules, and that compare what was trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean as mean_of
from statistics import median
from typing import Annotated, Any

import typer

from akkordeon.cli.errors import say
from akkordeon.cli.options import with_settings
from akkordeon.core.errors import RecipeError
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.laboratory.delays import Kind
from akkordeon.experiments.laboratory.on_engine import EngineName
from akkordeon.experiments.presets import OPTIMIZERS, RULES, SCHEDULES

__all__ = ["compare", "plan", "report"]

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
    schedules: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help=f"Of rows: {', '.join(SCHEDULES)}; with the latter, updates of several batches.",
        ),
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
    asked = None if schedules is None else _listed("--schedules", schedules, str)
    found = plan_task(config, hosts, costs, elsewhere, asked)
    if save_costs is not None:
        files.save_costs(found.costs, save_costs)
    Console().print(_table(found))
    say(found.why)
    if json is not None:
        files.write_json(found.as_json(), json)


@with_settings(only=("task", "data_dir", "batch_size", "diagnose_every"))
def compare(
    config: TrainConfig,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Keep all runs here; given again, the study goes on.")
    ] = Path("comparison"),
    rules: Annotated[
        str,
        typer.Option(
            metavar="RULE/OPTIMIZER,…",
            help="What is compared, as in stash/adamw,inverse/sgd. "
            f"Rules: {', '.join(RULES)}. Optimizers: {', '.join(OPTIMIZERS)}.",
        ),
    ] = "stash/momentum,inverse/momentum,dc-adaptive/momentum",
    delays: Annotated[
        str, typer.Option(metavar="N,…", help="Updates between a forward and its gradient, at the head.")
    ] = "0,1,2,4,8",
    kind: Annotated[
        Kind,
        typer.Option(help="The same at all gates; less down the row, as in 1F1B; drawn for each batch."),
    ] = "fixed",
    warm_up: Annotated[
        int, typer.Option(min=0, metavar="BATCHES", help="Have delays grow from none over so many.")
    ] = 0,
    engine: Annotated[
        EngineName | None,
        typer.Option(help="Run on it, with one batch more in flight than --delays say; none emulates them."),
    ] = None,
    lrs: Annotated[
        str, typer.Option(metavar="LR,…", help="Learning rates to choose from, for each rule and delay.")
    ] = "0.003,0.01,0.03,0.1",
    steps: Annotated[int, typer.Option(min=1, help="Batches of each run.")] = 1000,
    decay: Annotated[
        bool, typer.Option("--decay", help="Learning rates fall along a cosine, to nothing at the last.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs that are reported.")] = 3,
    tuning_seeds: Annotated[int, typer.Option(min=1, help="Runs of each learning rate before.")] = 1,
    figures: Annotated[bool, typer.Option("--figures", help="Draw them, too, with matplotlib.")] = False,
) -> None:
    """Compare rules for stale gradients at exact delays, each with the learning rate that suits it.

    One process emulates the delays, with the gates, optimizers and rules of real runs: no engine is in it,
    unless one is given.
    """
    from dataclasses import replace

    from rich.console import Console

    from akkordeon.experiments.laboratory.figures import draw, require_matplotlib
    from akkordeon.experiments.laboratory.study import Design, Study

    if figures:
        require_matplotlib()
    design = Design(
        task=config.task,
        methods=tuple(_listed("--rules", rules, str)),
        delays=tuple(_listed("--delays", delays, int)),
        lrs=tuple(_listed("--lrs", lrs, float)),
        kind=kind,
        steps=steps,
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        batch_size=config.batch_size,
        warm_up=warm_up,
        engine=engine,
        diagnose_every=config.diagnose_every,
        decay=decay,
    )
    out.mkdir(parents=True, exist_ok=True)
    study = Study(lambda seed: replace(config, seed=seed).load_task(), design, out / "arms.jsonl", _tell)
    cells = list(study.cells())
    Console().print(_compared(cells, design.delays, exact=engine is None))
    say("lr*: at an edge of --lrs, beyond which a better one may be")
    if figures:
        say(f"drawn: {', '.join(map(str, draw(cells, out)))}")


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="What `akkordeon train --out` was given.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.html", help="Write the report here; it needs no other file.")
    ] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write its figures here, too, as SVG and PNG.")
    ] = None,
) -> None:
    """Show runs side by side on one page: curves, staleness, timelines, settings, where batches went."""
    from akkordeon.experiments.report.report import report as report_of

    made = report_of(*runs)
    made.save(out)
    say(f"report of {len(runs)} run{'s' if len(runs) > 1 else ''} in {out}")
    if figures is not None:
        say(f"drawn: {', '.join(map(str, made.save_figures(figures)))}")


def _listed(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        found = [kind(each) for each in text.split(",") if each]
    except ValueError as error:
        raise RecipeError(f"{option} is a list of numbers with commas between, got {text!r}") from error
    if not found:
        raise RecipeError(f"{option} names nothing")
    return found


def _tell(arm: Any, outcome: Any) -> None:
    what = f"{arm.method}, delay {arm.delay}, lr {arm.lr:g}, seed {arm.seed}"
    say(f"{what}: " + (outcome.why or f"loss {outcome.loss:.4f}, validation {outcome.validation:.4f}"))


def _compared(cells: Sequence[Any], delays: Sequence[int], exact: bool) -> Any:
    """A row for each method, a column for each delay: validation loss, spread, and the learning rate."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        show_lines=True,
        padding=(0, 1),
        title="validation loss, mean ± sd, and the learning rate",
    )
    table.add_column("rule/optimizer", no_wrap=True)
    for delay in delays:
        table.add_column(
            f"delay {delay}" if exact else f"{delay + 1} in flight", justify="right", no_wrap=True
        )
    for method in dict.fromkeys(cell.method for cell in cells):
        row = [cell for cell in cells if cell.method == method]
        copies = max(max(outcome.copies, default=1) for cell in row for outcome in cell.outcomes)
        step_s = median(outcome.step_s for cell in row for outcome in cell.outcomes)
        what = f"{method}\n≤ {copies} copies held" + (f"\n{1e3 * step_s:.2f} ms a step" if exact else "")
        table.add_row(what, *(_cell(cell, exact) for cell in row))
    return table


def _cell(cell: Any, exact: bool) -> str:
    mean, spread = cell.of("validation")
    found = f"{mean:.4f}\n± {spread:.4f}" if math.isfinite(mean) else "diverges\n"
    found = f"{found}\nlr {cell.lr:g}{'*' if cell.at_edge else ''}{_measured(cell.outcomes)}"
    if exact or not math.isfinite(mean):
        return found
    taus = [tau for outcome in cell.outcomes for tau in outcome.staleness]
    step_s = median(outcome.step_s for outcome in cell.outcomes)
    return f"{found}\nτ {sum(taus) / len(taus):.1f}\n{1e3 * step_s:.2f} ms a batch"


def _measured(outcomes: Sequence[Any]) -> str:
    """Mean cosine and correction, each of the gate where it is worst; nothing where none was measured."""
    lines = ""
    for what, worst in (("cosine", min), ("correction", max)):
        figures = [[f for f in getattr(outcome, what) if f is not None] for outcome in outcomes]
        if any(figures):
            lines += f"\n{what} {mean_of([worst(some) for some in figures if some]):.3f}"
    return lines


def _table(found: Any) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from akkordeon.experiments.planning.table import table_of_layouts

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    headings, rows = table_of_layouts(found.layouts)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for each, (gates, *others) in zip(found.layouts, rows, strict=True):
        style = "bold" if each is found.best else "" if each.fits else "red"
        table.add_row(f"{'▶ ' if each is found.best else ''}{gates}", *others, style=style)
    return table
