"""What ``akkordeon``, ``akkordeon --help`` and ``akkordeon --version`` show, which needs no command loaded.

To load one takes seconds, as PyTorch comes with it. So the sentences stand here a second time; a test
compares them with those of the commands.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer
from typer.core import TyperGroup

__all__ = ["COMMANDS", "COMPLETION", "WORDS", "empty", "listed"]

WORDS: tuple[list[str], ...] = ([], ["--help"], ["--version"])
"""The command lines that are answered here."""

COMPLETION = "_AKKORDEON_COMPLETE"
"""Is in the environment where a shell asks how a line goes on: without words, and all commands answer."""

COMMANDS = {
    "plan": (
        "Find how to lay a task's network out on hosts: costs measured here, layouts run dry in "
        "the simulator."
    ),
    "compare": (
        "Compare rules for stale gradients at exact delays, each with the learning rate that suits it."
    ),
    "train": "Train a task; Ctrl-C, SIGTERM and SIGHUP stop with what is reached.",
    "resume": (
        "Go on with training from its latest checkpoint, to the end that was planned, in the same folder."
    ),
    "test": "Measure what was kept, on the task's validation data.",
    "predict": "Print the class (or the outputs) that the kept network gives each input.",
    "report": (
        "Show runs side by side on one page: curves, staleness, timelines, settings, where batches went."
    ),
    "serve": "Answer predictions over HTTP until Ctrl-C, always with the newest weights.",
    "watch": "Show a network that runs, or a kept run, on a page in a browser until Ctrl-C.",
    "data": "Download a data set, or what of it is missing.",
    "downpour": (
        "Train replicas of a task's network on parts of its data; shards hold the weights that count."
    ),
    "simulate": "Train a task, or compare schedules, in a world described in a file; the same each time.",
    "replay": (
        "Run a recorded run again, message by message, to the same bits; or say where it differs, and why."
    ),
    "join": "Make this machine part of a cluster, until Ctrl-C.",
    "status": "Show the networks of a cluster: gates, where they are and how they do, and sentinels.",
    "detach": "Have a sentinel of a network end, whoever attached it.",
    "set": "Have a gate of a network learn with other settings, while it trains.",
    "insert": "Have another gate be part of a network, while it trains.",
    "remove": "Have a network go on without a gate, while it trains.",
    "network": "Start and stop networks that run on their own.",
    "sentinel": "Feed a network from this machine.",
}
"""Each command in the order of ``akkordeon.cli.main``, and the first sentence of its help."""


def empty(group: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """The command line without commands.

    Args:
        group: what is to run its commands.
    """
    app = typer.Typer(
        cls=group,
        help="Trains PyTorch models with actors: a row of gates, each with its own optimizer.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    return app


def listed() -> typer.Typer:
    """The command line with commands that do nothing, for ``WORDS``."""
    app = empty()
    for name, sentence in COMMANDS.items():
        app.command(name, help=sentence)(_nothing)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"akkordeon {version('akkordeon')}")
        raise typer.Exit()


def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is."),
    ] = False,
) -> None:
    pass


def _nothing() -> None:
    pass
