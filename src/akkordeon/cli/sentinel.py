"""Commands that feed a network on a Ray cluster from this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from akkordeon.cli.errors import complain
from akkordeon.cli.options import Patience, with_settings
from akkordeon.cli.signals import EndingSignals
from akkordeon.core.errors import WaitTimeoutError
from akkordeon.engines.ray.cluster.connection import parse_target, probe
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.tasks.loader import load_task
from akkordeon.experiments.tasks.named import NAMED

__all__ = ["app"]

POLL_S = 0.2
"""How often a waiting command looks for Ctrl-C."""

DROP_S = 2.0
"""How long a sentinel that was told twice to end has the time to say what it came to."""

app = typer.Typer(help="Feed a network from this machine.", no_args_is_help=True)

TargetOption = Annotated[str, typer.Option("--network", metavar="HOST:PORT/NAME", help="Which network.")]
DataName = Annotated[
    str, typer.Option("--data", metavar=f"[{'|'.join(NAMED)}|FILE.py:FUNCTION]", help="The data.")
]
SentinelName = Annotated[
    str | None, typer.Option("--name", help="Its name; the network finds one if not given.")
]


@app.command("train")
@with_settings(only=("data_dir", "take", "epochs", "batch_size"))
def train(
    target: TargetOption,
    data: DataName,
    config: TrainConfig,
    in_flight: Annotated[int, typer.Option(min=1, help="Batches under way at once.")] = 5,
    name: SentinelName = None,
    patience: Patience = None,
    seed: Annotated[int, typer.Option(help="Of the order of the samples.")] = 0,
) -> None:
    """Train a network with data of this machine; Ctrl-C ends it, the network goes on."""
    from akkordeon.experiments.build import build_trainers

    def recipe() -> Any:
        task = load_task(data, config.data_dir)
        (trainer,) = build_trainers(task, replace(config, in_flight=in_flight, seed=seed))
        return replace(trainer, name=name)

    _attach(target, recipe, patience)


@app.command("validate")
@with_settings(only=("data_dir", "take"))
def validate(
    target: TargetOption,
    data: DataName,
    config: TrainConfig,
    every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="Time between rounds.")] = 20.0,
    name: SentinelName = None,
    patience: Patience = None,
) -> None:
    """Validate a network with data of this machine, until Ctrl-C."""
    from akkordeon.data.sources import as_batches
    from akkordeon.data.split import take_samples
    from akkordeon.sentinels.recipes import Sentinel

    def recipe() -> Any:
        task = load_task(data, config.data_dir)
        source, take = task.validate, config.take
        batches = source if take is None else take_samples(as_batches(source, 1024), take)
        return Sentinel.validate(batches, task.loss, scores=task.scores, every_s=every, name=name)

    _attach(target, recipe, patience)


@app.command("checkpoint")
def checkpoint(
    target: TargetOption,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to keep them in.")],
    every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="Time between them.")] = 30.0,
    kept: Annotated[int, typer.Option(min=1, help="So many, the latest.")] = 3,
    name: SentinelName = None,
    patience: Patience = None,
) -> None:
    """Take checkpoints of a network, until Ctrl-C; `akkordeon network start --from` takes them up."""
    from akkordeon.experiments.run_folder import CHECKPOINTS
    from akkordeon.sentinels.recipes import Sentinel
    from akkordeon.session.recovery.checkpoint_files import CheckpointFolder
    from akkordeon.session.recovery.checkpoint_writer import CheckpointWriter

    writer = CheckpointWriter(CheckpointFolder(out / CHECKPOINTS, kept).write)

    try:
        _attach(target, lambda: Sentinel.checkpoint(every_s=every, name=name), patience, writer.tell)
    finally:
        writer.close()
        if writer.failure is not None:
            complain(writer.failure)


def _attach(
    target: str,
    recipe: Callable[[], Any],
    patience_s: float | None,
    tell: Callable[[Any], None] | None = None,
) -> None:
    """Attach a sentinel and follow it to its end; a signal has it end, a second one without its batches.

    Args:
        target: the network.
        recipe: makes the sentinel.
        patience_s: how long to wait for a network that went away.
        tell: is told every record.

    Raises:
        Signalled: it was ended so; what it came to is told by then.
    """
    from akkordeon.session.remote_session import connect
    from akkordeon.watch.lines import LineView

    echo: Callable[[str], None] = typer.echo
    view = LineView(echo, partial(typer.echo, err=True))
    address, _ = parse_target(target)
    with EndingSignals() as signals:
        probe(address)  # before the data are loaded
        sentinel = recipe()
        with view, connect(target, patience_s=patience_s) as session:
            for watcher in (view.tell, tell):
                if watcher is not None:
                    session.subscribe(watcher)
            attachment = session.attach(sentinel)
            typer.echo(f"{attachment.name!r} is attached to {target}; Ctrl-C ends it")
            with signals.counted():
                _wait(attachment, signals)
                _say_what_it_came_to(attachment)
            signals.raise_first()


def _wait(attachment: Any, signals: EndingSignals) -> None:
    """Wait for its end; have it end gently after one signal, and soon after two."""
    answered = 0
    while True:
        try:
            attachment.wait(DROP_S if answered > 1 else POLL_S)
            return
        except WaitTimeoutError:
            if answered > 1:
                return
            if answered < signals.count:
                answered = signals.count
                attachment.detach(drop=answered > 1)


def _say_what_it_came_to(attachment: Any) -> None:
    if attachment.role.trains:
        sent, trained, refused, lost = attachment.batches.as_tuple()
        counts = f"{sent:,} batches sent, {trained:,} trained, {refused:,} refused, {lost:,} lost"
        typer.echo(f"{attachment.name}: {counts}")
    else:
        typer.echo(f"{attachment.name}: {attachment.rounds_done:,} rounds")
