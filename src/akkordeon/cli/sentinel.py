"""Commands that feed a network on a Ray cluster from this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer

from akkordeon.cli.errors import ENDED_BY
from akkordeon.cli.options import with_settings
from akkordeon.core.errors import WaitTimeoutError
from akkordeon.engines.ray.cluster.connection import parse_target, probe
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.tasks.loader import load_task
from akkordeon.experiments.tasks.named import NAMED

__all__ = ["app"]

POLL_S = 0.2
"""How often a waiting command looks for Ctrl-C."""

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
    seed: Annotated[int, typer.Option(help="Of the order of the samples.")] = 0,
) -> None:
    """Train a network with data of this machine; Ctrl-C ends it, the network goes on."""
    from akkordeon.experiments.build import build_trainers

    _check_answers(target)
    task = load_task(data, config.data_dir)
    (trainer,) = build_trainers(task, replace(config, in_flight=in_flight, seed=seed))
    ended, number = _attach(target, replace(trainer, name=name))
    sent, trained, refused, lost = ended.batches.as_tuple()
    typer.echo(
        f"{ended.name}: {sent:,} batches sent, {trained:,} trained, {refused:,} refused, {lost:,} lost"
    )
    _exit_if_terminated(number)


@app.command("validate")
@with_settings(only=("data_dir", "take"))
def validate(
    target: TargetOption,
    data: DataName,
    config: TrainConfig,
    every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="Time between rounds.")] = 20.0,
    name: SentinelName = None,
) -> None:
    """Validate a network with data of this machine, until Ctrl-C."""
    from akkordeon.data.sources import as_batches
    from akkordeon.data.split import take_samples
    from akkordeon.sentinels.recipes import Sentinel

    _check_answers(target)
    task = load_task(data, config.data_dir)
    source, take = task.validate, config.take
    batches = source if take is None else take_samples(as_batches(source, 1024), take)
    _, number = _attach(
        target, Sentinel.validate(batches, task.loss, scores=task.scores, every_s=every, name=name)
    )
    _exit_if_terminated(number)


def _check_answers(target: str) -> None:
    """Find out whether a cluster answers there, before the data is loaded."""
    address, _ = parse_target(target)
    probe(address)


def _exit_if_terminated(number: int | None) -> None:
    """Ctrl-C is how a sentinel is ended; who sends another signal is told that it was obeyed."""
    if number is not None and number != signal.SIGINT:
        typer.echo(f"ended by {signal.Signals(number).name}")
        raise typer.Exit(ENDED_BY + number)


def _attach(target: str, recipe: Any) -> tuple[Any, int | None]:
    """Attach a sentinel and follow it to its end; Ctrl-C or SIGTERM has it end, twice at once.

    What a sentinel came to when SIGTERM ended it is told on its way out.
    """
    from akkordeon.session.remote_session import connect
    from akkordeon.watch.lines import Lines
    from akkordeon.watch.signals import SignalCounter

    echo: Callable[[str], None] = typer.echo
    view = Lines(echo, partial(typer.echo, err=True))
    with view, connect(target) as session, SignalCounter() as signals:  # Ray takes SIGTERM when it begins
        session.subscribe(view.tell)
        attachment = session.attach(recipe)
        typer.echo(f"{attachment.name!r} is attached to {target}; Ctrl-C ends it")
        answered = 0
        while True:
            try:
                attachment.wait(POLL_S)
                return attachment, signals.first
            except WaitTimeoutError:
                if answered < signals.count:
                    answered = signals.count
                    attachment.detach(drop=answered > 1)
