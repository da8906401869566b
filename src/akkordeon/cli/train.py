"""The commands that train a task, and that use the folder it leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from akkordeon.cli.errors import ENDED_BY, complain, say
from akkordeon.cli.options import (
    AsJson,
    OfBest,
    Out,
    RecordTo,
    RunDir,
    Trust,
    Web,
    page_address,
    with_settings,
)
from akkordeon.experiments.config import DataDir, TrainConfig
from akkordeon.experiments.report.watching import WatchConfig
from akkordeon.watch.diagnosis_table import diagnosis_lines
from akkordeon.watch.lines import scores_in_words

__all__ = ["carry_out", "measure", "predict", "resume", "train"]


@with_settings()
def train(
    config: TrainConfig,
    watching: WatchConfig,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Take the layout that `akkordeon plan` finds best for this machine."),
    ] = False,
    json: AsJson = False,
    out: Out = None,
    record: RecordTo = None,
    web: Web = None,
) -> None:
    """Train a task; Ctrl-C, SIGTERM and SIGHUP stop with what is reached.

    With --out the last and the best weights are kept as they come, and with --checkpoint-every all that
    `akkordeon resume` needs.

    FILE.py:FUNCTION names a function of yours that returns an akkordeon.Task.
    """
    if auto:
        from akkordeon.experiments.planning.settings import as_planned

        config, found = as_planned(config)
        say(found.why)
    carry_out(config, json, out, record, watching, web=web)


@with_settings()
def resume(
    folder: RunDir,
    watching: WatchConfig,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads at work, if others than before.")
    ] = None,
    checkpoint_every: Annotated[
        str | None, typer.Option(metavar="SECONDS|UPDATESu", help="Checkpoints, if at another rhythm.")
    ] = None,
    trust: Trust = False,
    data_dir: DataDir = None,
    json: AsJson = False,
    web: Web = None,
) -> None:
    """Go on with training from its latest checkpoint, to the end that was planned, in the same folder."""
    from akkordeon.experiments.saved_run import resumed_config

    changes = {"workers": workers, "checkpoint_every": checkpoint_every, "data_dir": data_dir}
    resumed = resumed_config(folder, trust, **changes)
    carry_out(resumed, json, folder, None, watching, goes_on=True, web=web)


def carry_out(
    config: TrainConfig,
    json: bool,
    out: Path | None,
    record: Path | None,
    watching: WatchConfig,
    goes_on: bool = False,
    web: str | None = None,
) -> None:
    """Train on the terminal; what is said at the end has time until all is kept."""
    from akkordeon.experiments.run_folder import as_json
    from akkordeon.experiments.train import train_task
    from akkordeon.watch.display import view_for

    warn = partial(typer.echo, err=True)
    live = config.workers != 1  # or gates are asked how they are, which changes the run
    view, page = view_for(typer.echo, warn, live), page_address(web)
    outcome = train_task(config, view, out, record, warn, goes_on, watching, page)
    measured = diagnosis_lines(outcome.summary["gates"])
    if measured:
        say("\n".join(["", *measured]))
    say(f"\n{_in_words(outcome.summary)}")
    if outcome.best is not None:
        say(_best_in_words(outcome.best, config.keep_best or "loss"))
    if outcome.saved:
        say(f"kept in {out}" + (f"; `akkordeon resume {out}` goes on" if outcome.can_go_on else ""))
    if json:
        say(as_json(outcome.summary))
    for complaint in outcome.complaints:
        complain(complaint)
    if outcome.signal is not None or outcome.complaints:
        raise typer.Exit(1 if outcome.signal is None else ENDED_BY + outcome.signal)


def _in_words(summary: Any) -> str:
    batches = summary["batches"]
    lost = "".join(f", {batches[what]:,} {what}" for what in ("refused", "lost") if batches[what])
    took = f"in {summary['seconds']:.1f} s, {summary['samples_per_s']:,.0f} samples/s"
    return f"{batches['trained']:,} batches trained{lost} {took}"


def _best_in_words(best: Any, score: str) -> str:
    value = best.loss if score == "loss" else best.scores[score]
    return f"best: round {best.round}, {score} {value:.4f}"


def measure(
    folder: RunDir,
    best: OfBest = False,
    trust: Trust = False,
    data_dir: DataDir = None,
    json: AsJson = False,
) -> None:
    """Measure what was kept, on the task's validation data."""
    from akkordeon.experiments.run_folder import as_json
    from akkordeon.experiments.saved_run import load_run, measure_run

    record = measure_run(*load_run(folder, best, data_dir, trust))
    if json:
        typer.echo(as_json(record))
    else:
        scores = scores_in_words(record["scores"])
        typer.echo(f"loss {record['loss']:.4f}{scores}  {record['samples']:,} samples")


def predict(
    folder: RunDir,
    file: Annotated[Path, typer.Argument(metavar="FILE.npy", help="Inputs, a row each.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Write the network's outputs here.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Give the probability of each class.")
    ] = False,
    best: OfBest = False,
    trust: Trust = False,
    data_dir: DataDir = None,
) -> None:
    """Print the class (or the outputs) that the kept network gives each input."""
    from akkordeon.experiments.array_file import save_array
    from akkordeon.experiments.saved_run import load_run, predict_file

    task, network = load_run(folder, best, data_dir, trust)
    outputs, are_scores = predict_file(task, network, file, probabilities)
    if out is not None:
        save_array(out, outputs)
        return
    rows = outputs.argmax(1) if are_scores and not probabilities else outputs
    for row in rows:
        typer.echo(" ".join(f"{number:g}" for number in row.reshape(-1).tolist()))
