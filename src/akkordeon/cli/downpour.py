"""The command for Downpour: replicas of a task's network that push to parameter shards."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["downpour_command"]

Task = Annotated[
    str, typer.Argument(metavar="[TASK]", help="xor, digits, mnist, fashion-mnist or FILE.py:FUNCTION.")
]
DataDir = Annotated[
    str | None,
    typer.Option(envvar="AKKORDEON_DATA", metavar="DIR", help="The folder with the files of the data set."),
]
Seed = Annotated[
    int,
    typer.Option(min=-(2**63), max=2**63 - 1, help="Of weights, masks and the order of samples."),
]
ServerOptimizer = Annotated[
    Literal["adagrad", "sgd", "momentum", "nesterov", "delayed-nesterov", "adam"],
    typer.Option(help="What shards apply pushes with."),
]
ServerStaleness = Annotated[
    Literal["stash", "inverse", "dc-constant", "dc-adaptive"],
    typer.Option("--staleness", help="What shards do about stale pushes; dc-… with --no-local-step."),
]
Compression = Annotated[Literal["none", "bf16", "int8"], typer.Option(help="Of pushes, with error feedback.")]


Planned = tuple[Any, Path | None, Path | None, bool]
"""A ``job.Plan``, where to keep what it came to, where the record goes, and whether to say it in JSON."""


def downpour_command(carry_out: Callable[[Any, Path | None, Path | None, bool], None]) -> Callable[..., None]:
    """The command, given what carries a plan out."""

    @wraps(_plan)
    def downpour(**given: Any) -> None:
        carry_out(*_plan(**given))

    return downpour


def _plan(
    task: Task = "digits",
    data_dir: DataDir = None,
    replicas: Annotated[int, typer.Option(min=1, help="How many replicas of the network.")] = 2,
    push_every: Annotated[int, typer.Option(min=1, help="Steps between two pushes.")] = 1,
    fetch_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between two fetches; with each push if not given.")
    ] = None,
    server_optimizer: ServerOptimizer = "adagrad",
    server_lr: Annotated[float | None, typer.Option(min=0, help="Its learning rate.")] = None,
    staleness: ServerStaleness = "stash",
    max_staleness: Annotated[int | None, typer.Option(min=0, help="Drop and count older pushes.")] = None,
    warm_start: Annotated[int, typer.Option(min=0, help="Pushes of one replica before others begin.")] = 0,
    fetch: Annotated[
        Literal["background", "wait"], typer.Option(help="Whether the next batch waits for weights.")
    ] = "background",
    push: Annotated[
        Literal["gradients", "differences"],
        typer.Option(help="Sums of gradients, or differences of weights."),
    ] = "gradients",
    local_step: Annotated[bool, typer.Option(help="Whether replicas step with their own optimizers.")] = True,
    steps_by_speed: Annotated[
        bool, typer.Option("--steps-by-speed", help="Let slower replicas push after fewer steps.")
    ] = False,
    compression: Compression = "none",
    max_shard_bytes: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Split a larger position over several shards.")
    ] = None,
    samples_per_replica: Annotated[
        int | None, typer.Option(min=1, help="Train on the first N samples for each replica alone.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times to read the training data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a batch.")] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Batches a replica has under way.")] = 1,
    optimizer: Annotated[
        Literal["sgd", "momentum", "adam", "adamw"] | None, typer.Option(help="Of the local steps.")
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Its learning rate.")] = None,
    validate_every: Annotated[
        float | None, typer.Option(min=0.01, metavar="SECONDS", help="Validate so often, not each epoch.")
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
    json: Annotated[
        bool, typer.Option("--json", help="End with the outcome as one JSON object on a line.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep weights, report and task in this folder.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what every actor did, for `akkordeon replay`.")
    ] = None,
) -> Planned:
    """Train replicas of a task's network on parts of its data; shards hold the weights that count.

    The data is cut into one part for each replica. Validation, and what is kept, are of the shards.
    """
    from akkordeon.experiments import train as job

    settings: dict[str, Any] = {
        "replicas": replicas,
        "push_every": push_every,
        "fetch_every": fetch_every,
        "server_optimizer": server_optimizer,
        "server_lr": server_lr,
        "staleness": staleness,
        "max_staleness": max_staleness,
        "warm_start": warm_start,
        "fetch": fetch,
        "push": push,
        "local_step": local_step,
        "steps_by_speed": steps_by_speed,
        "compression": None if compression == "none" else compression,
        "max_shard_bytes": max_shard_bytes,
    }
    plan = job.Plan(
        task=task,
        data_dir=data_dir,
        epochs=epochs,
        batch_size=batch_size,
        in_flight=in_flight,
        take=None if samples_per_replica is None else samples_per_replica * replicas,
        validate_every=validate_every,
        optimizer=optimizer,
        lr=lr,
        keep_best=keep_best,
        patience=patience,
        seed=seed,
        workers=workers,
        downpour=settings,
    )
    return plan, out, record, json
