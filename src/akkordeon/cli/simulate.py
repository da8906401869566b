"""The commands around the simulator: a scenario to a table, a record to its replay."""

from __future__ import annotations

import json as encoder
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from akkordeon.cli.options import AsJson, RecordTo, TraceTo
from akkordeon.watch.lines import scores_in_words

__all__ = ["replay", "simulate"]


def simulate(
    scenario: Annotated[
        Path, typer.Argument(metavar="SCENARIO.toml", help="The world, see examples/scenarios.")
    ],
    json: AsJson = False,
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw who did what when, a lane for each gate.")
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        typer.Option("--window", metavar="FROM TO", help="What of it to draw, in virtual seconds."),
    ] = None,
    trace: TraceTo = None,
    record: RecordTo = None,
    seed: Annotated[
        int | None, typer.Option(min=-(2**63), max=2**63 - 1, help="Another than the scenario's.")
    ] = None,
) -> None:
    """Train a task, or compare schedules, in a world described in a file; the same each time."""
    from dataclasses import replace

    from akkordeon.core.errors import RecordError, ScenarioError
    from akkordeon.engines.timeline import Timeline
    from akkordeon.engines.timeline.drawing import svg
    from akkordeon.experiments.scenario import load_scenario, train_scenario

    world = load_scenario(scenario)
    if seed is not None:
        world = replace(world, seed=seed)
    seen = None if timeline is trace is None else Timeline()
    for file in (timeline, trace):
        if file is not None:
            _write(file, "a", "")  # or all is computed before it turns out that it cannot be written
    if window is not None and not -math.inf < window[0] < window[1] < math.inf:
        raise ScenarioError(f"--window goes from a time to a later one, got {window[0]:g} to {window[1]:g}")
    if world.row is not None:
        if record is not None:
            raise ScenarioError("nothing is computed in a dry scenario, so there is nothing to record")
        outcomes = world.compare(seen)
        typer.echo(_comparison(world.title, outcomes))
        report: dict[str, Any] = {"title": world.title, "schedules": [o.as_json() for o in outcomes]}
    else:
        report = train_scenario(world, record, seen)
        typer.echo(_training(report))
    if seen is not None and timeline is not None:
        begin_s, end_s = window or seen.notable_stretch()
        _write(timeline, "w", svg(seen.spans, world.title, begin_s, end_s))
        typer.echo(f"timeline of {begin_s:.4g} to {end_s:.4g} s in {timeline}")
    if seen is not None and trace is not None:
        seen.write_trace(trace)
    if json:
        typer.echo(encoder.dumps(report, sort_keys=True))
    if "record_failure" in report:
        raise RecordError(report["record_failure"])


def replay(
    record: Annotated[Path, typer.Argument(metavar="FILE", help="What --record wrote.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the Python file that the record names, if it names one.")
    ] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Replay a record that breaks off as far as it goes.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Run a recorded run again, message by message, to the same bits; or say where it differs, and why."""
    from akkordeon.experiments.saved_run import replay_run
    from akkordeon.session.records.digest import weights_digest
    from akkordeon.session.records.record import Record

    result = replay_run(Record(record), trust, partial)
    digest = weights_digest(tensor for gate in result.states.values() for tensor in gate.values())
    for report in result.reports:
        typer.echo(f"{report.sentinel}  loss {report.loss:.4f}{scores_in_words(report.scores)}")
    as_far = "" if result.whole else ", as far as the record goes"
    typer.echo(f"{result.messages:,} messages replayed to the same bits{as_far}; weights {digest[:16]}")
    if json:
        typer.echo(encoder.dumps({"messages": result.messages, "weights_sha256": digest}))


def _write(path: Path, mode: Literal["a", "w"], text: str) -> None:
    from akkordeon.core.errors import DataError

    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def _comparison(title: str, outcomes: Iterable[Any]) -> str:
    rows = [("schedule", "samples/s", "busy", "mean τ, gate 0", "max τ", "lost batches", "redone samples")]
    for o in outcomes:
        seen = o.staleness[0] if o.staleness else {}
        count = sum(seen.values())
        mean = f"{sum(tau * n for tau, n in seen.items()) / count:.1f}" if count else "0"
        largest = str(max((max(s, default=0) for s in o.staleness), default=0))
        rows.append(
            (o.schedule, f"{o.samples_per_s:.2f}", f"{100 * o.utilisation:.0f} %", mean, largest,
             str(o.lost), str(o.redone))
        )  # fmt: skip
    return f"{title}\n\n{_table(rows)}"


def _training(report: dict[str, Any]) -> str:
    rows: list[Sequence[str]] = [("at virtual s", "sentinel", "loss", "scores")]
    for entry in report["history"]:
        scores = scores_in_words(entry["scores"]).lstrip()
        rows.append((f"{entry['at_s']:.3f}", entry["sentinel"], f"{entry['loss']:.4f}", scores))
    gates: list[Sequence[str]] = [("gate", "updates", "busy", "mean τ", "max τ")]
    for gate, busy in zip(report["gates"], report["utilisation"].values(), strict=True):
        gates.append(
            (gate["name"], str(gate["version"]), f"{100 * busy:.0f} %", f"{gate['staleness_mean']:.2f}",
             str(gate["staleness_max"]))
        )  # fmt: skip
    batches = report["batches"]
    ends = (
        f"{batches['sent']:,} batches: {batches['trained']:,} trained, {batches['refused']:,} refused, "
        f"{batches['lost']:,} lost; {report['samples_per_s']:,.0f} samples per virtual second; "
        f"weights {report['weights_sha256'][:16]}"
    )
    return "\n\n".join([report["title"], _table(rows), _table(gates), ends])


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
