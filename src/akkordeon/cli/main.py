"""The command line: arguments to a plan, a plan to a run."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from akkordeon.cli import network as cli_network
from akkordeon.cli.downpour import downpour_command
from akkordeon.cli.simulate import replay, simulate
from akkordeon.core.errors import AkkordeonError

__all__ = ["app", "main"]

ENDED_BY = 128
"""Exit code after a signal, as shells have it: this and its number, so 130 after Ctrl-C."""


class _Sentences(TyperGroup):
    """Tells every error that is raised on purpose as one sentence."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AkkordeonError as error:
            _complain(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(ENDED_BY + signal.SIGINT) from None


def _complain(error: AkkordeonError) -> None:
    typer.echo(f"akkordeon: {' '.join(str(error).split())}", err=True)


app = typer.Typer(
    cls=_Sentences,
    help="Trains PyTorch models with actors: a row of gates, each with its own optimizer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The entry point."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"akkordeon {version('akkordeon')}")
        raise typer.Exit()


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is."),
    ] = False,
) -> None:
    pass


DataDir = Annotated[
    str | None,
    typer.Option(envvar="AKKORDEON_DATA", metavar="DIR", help="The folder with the files of the data set."),
]
Seed = Annotated[
    int,
    typer.Option(min=-(2**63), max=2**63 - 1, help="Of weights, masks and the order of samples."),
]
AsJson = Annotated[bool, typer.Option("--json", help="End with the outcome as one JSON object on a line.")]
KeptDir = Annotated[Path, typer.Argument(metavar="DIR", help="What `akkordeon train --out` was given.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run the Python file that the task is from, if it is from one.")
]
OfBest = Annotated[bool, typer.Option("--best", help="Use the best weights instead of the last.")]


@app.command()
def train(
    task: Annotated[
        str, typer.Argument(metavar="[TASK]", help="digits, mnist, fashion-mnist, xor or FILE.py:FUNCTION.")
    ] = "digits",
    data_dir: DataDir = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times to read the training data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a batch.")] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Batches a sentinel has under way; if not given, the task's own number."),
    ] = None,
    sentinels: Annotated[int, typer.Option(min=1, help="Cut the data into N parts, a sentinel each.")] = 1,
    take: Annotated[int | None, typer.Option(min=1, help="Train on the first N samples alone.")] = None,
    validate_every: Annotated[
        float | None, typer.Option(min=0.01, metavar="SECONDS", help="Validate so often, not each epoch.")
    ] = None,
    staleness: Annotated[
        Literal["latest", "stash", "dc-constant", "dc-adaptive"] | None,
        typer.Option(help="What all gates do about stale gradients."),
    ] = None,
    max_staleness: Annotated[int | None, typer.Option(min=0, help="Refuse older gradients.")] = None,
    optimizer: Annotated[
        Literal["sgd", "momentum", "adam", "adamw"] | None, typer.Option(help="The optimizer of all gates.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Its learning rate, or that of the task's own optimizers.")
    ] = None,
    keep_best: Annotated[
        str | None, typer.Option(metavar="SCORE", help="Keep the weights best by this score, or 'loss'.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after N validations without a better one.")
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads at work; one makes a run repeatable.")
    ] = None,
    json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep weights, report and task in this folder.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what every actor did, for `akkordeon replay`.")
    ] = None,
) -> None:
    """Train a task; Ctrl-C, SIGTERM and SIGHUP stop with what is reached.

    With --out the last and the best weights are kept as they come.

    FILE.py:FUNCTION names a function of yours that returns an akkordeon.Task.
    """
    from akkordeon.experiments import train as job

    plan = job.Plan(
        task=task,
        data_dir=data_dir,
        epochs=epochs,
        batch_size=batch_size,
        in_flight=in_flight,
        sentinels=sentinels,
        take=take,
        validate_every=validate_every,
        staleness=staleness,
        optimizer=optimizer,
        lr=lr,
        max_staleness=max_staleness,
        keep_best=keep_best,
        patience=patience,
        seed=seed,
        workers=workers,
    )
    _carry_out(plan, out, record, json)


def _carry_out(plan: Any, out: Path | None, record: Path | None, json: bool) -> None:
    """Train as planned, on the terminal; what is said at the end has time until all is kept."""
    from akkordeon.experiments import train as job
    from akkordeon.experiments.run_folder import as_json

    outcome = job.train(plan, _view(plan.workers), out, record, warn=partial(typer.echo, err=True))
    _say(f"\n{_in_words(outcome.summary)}")
    if outcome.best is not None:
        _say(_best_in_words(outcome.best, plan.keep_best or "loss"))
    if outcome.kept:
        _say(f"kept in {out}")
    if json:
        _say(as_json(outcome.summary))
    for complaint in outcome.complaints:
        _say(f"akkordeon: {' '.join(complaint.split())}", err=True)
    if outcome.signal is not None or outcome.complaints:
        raise typer.Exit(1 if outcome.signal is None else ENDED_BY + outcome.signal)


def _say(line: str, err: bool = False) -> None:
    """Write a line to whoever still listens: a pipe or a terminal that is gone is no reason to fail."""
    stream = sys.stderr if err else sys.stdout
    try:
        typer.echo(line, err=err)
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # what is left in its buffer goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _best_in_words(best: Any, score: str) -> str:
    value = best.loss if score == "loss" else best.scores[score]
    return f"best: round {best.round}, {score} {value:.4f}"


def _view(workers: int | None) -> Any:
    """What shows the training; with one worker gates are not asked how they are, which changes the run."""
    from akkordeon.watch.display import view_for

    return view_for(typer.echo, partial(typer.echo, err=True), live=workers != 1)


def _in_words(summary: Any) -> str:
    batches = summary["batches"]
    lost = "".join(f", {batches[what]:,} {what}" for what in ("refused", "lost") if batches[what])
    took = f"in {summary['seconds']:.1f} s, {summary['samples_per_s']:,.0f} samples/s"
    return f"{batches['trained']:,} batches trained{lost} {took}"


@app.command("test")
def measure(
    folder: KeptDir,
    best: OfBest = False,
    trust: Trust = False,
    data_dir: DataDir = None,
    json: AsJson = False,
) -> None:
    """Measure what was kept, on the task's validation data."""
    from akkordeon.experiments import train as job
    from akkordeon.experiments.run_folder import as_json

    record = job.measure(*job.kept(folder, best, data_dir, trust))
    if json:
        typer.echo(as_json(record))
    else:
        scores = "".join(f"  {name} {value:.4f}" for name, value in record["scores"].items())
        typer.echo(f"loss {record['loss']:.4f}{scores}  {record['samples']:,} samples")


@app.command()
def predict(
    folder: KeptDir,
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
    from akkordeon.experiments import train as job
    from akkordeon.experiments.run_folder import save_array

    outputs, are_scores = job.predict(*job.kept(folder, best, data_dir, trust), file, probabilities)
    if out is not None:
        save_array(out, outputs)
        return
    rows = outputs.argmax(1) if are_scores and not probabilities else outputs
    for row in rows:
        typer.echo(" ".join(f"{number:g}" for number in row.reshape(-1).tolist()))


@app.command()
def data(
    name: Annotated[Literal["mnist", "fashion-mnist"], typer.Argument(help="Which data set.")],
    data_dir: Annotated[
        str, typer.Option(envvar="AKKORDEON_DATA", metavar="DIR", help="The folder for its files.")
    ],
) -> None:
    """Download a data set, or what of it is missing."""
    from akkordeon.data.download import download

    for path in download(name, data_dir, progress=sys.stderr.isatty()):
        typer.echo(path)


app.command("downpour")(downpour_command(_carry_out))
app.command()(simulate)
app.command()(replay)
app.add_typer(cli_network.network, name="network")
app.add_typer(cli_network.sentinel, name="sentinel")
app.command()(cli_network.join)
app.command()(cli_network.status)
app.command()(cli_network.detach)


if __name__ == "__main__":
    main()
