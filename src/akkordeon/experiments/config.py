"""The settings of a training run: name, type, range, default and help of each, in this place alone.

Commands make their options of these classes (``cli/options.py``), records and ``task.json`` are written and
read with them, and ``[train]`` of a scenario is one. A new setting is a field here, and whatever uses it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from typer import Argument, Option

from akkordeon.core.errors import RecipeError
from akkordeon.experiments.presets import (
    SERVER_RULES,
    CompressionName,
    OptimizerName,
    RuleName,
    ScheduleName,
    ServerOptimizerName,
    ServerRuleName,
)
from akkordeon.experiments.tasks.loader import load_task
from akkordeon.experiments.tasks.named import NAMED
from akkordeon.experiments.tasks.task import Task

__all__ = ["DATA_DIR", "DataDir", "DownpourConfig", "GateRule", "Settings", "TrainConfig", "settings_of"]

NEED_OLD_WEIGHTS = ", ".join(name for name, rule in SERVER_RULES.items() if rule.uses_old_weights)

# Of more than one command.
DATA_DIR = Option(envvar="AKKORDEON_DATA", metavar="DIR", help="The folder with the files of the data set.")
DataDir = Annotated[str | None, DATA_DIR]
GateRule = Annotated[RuleName | None, Option(help="What all gates do about stale gradients.")]


@dataclass(frozen=True)
class Settings:
    """Settings by name, each of its type and in its range.

    Raises:
        RecipeError: one is not.
    """

    def __post_init__(self) -> None:
        """Check what may come from a file that anybody wrote."""
        for name, hint in settings_of(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, hint):
                choices = _choices(hint)
                there_are = f"; there are {', '.join(choices)}" if choices else ""
                raise RecipeError(f"the setting {name!r} cannot be {value!r}{there_are}")

    @classmethod
    def from_plain(cls, description: Mapping[str, Any]) -> Self:
        """The settings in a file; None stands for a default.

        Raises:
            RecipeError: one of them is unknown, or cannot be what it is.
        """
        known = {field.name for field in fields(cls)}
        for name in description:
            if name not in known:
                raise RecipeError(f"its task has a setting {name!r} that this version does not know")
        return cls(**{name: value for name, value in description.items() if value is not None})


@dataclass(frozen=True)
class DownpourConfig(Settings):
    """Replicas and shards told by names and numbers alone; see :class:`akkordeon.Downpour`."""

    replicas: Annotated[int, Option(min=1, help="How many replicas of the network.")] = 2
    push_every: Annotated[int, Option(min=1, help="Steps between two pushes.")] = 1
    fetch_every: Annotated[
        int | None, Option(min=1, help="Steps between two fetches; with each push if not given.")
    ] = None
    server_optimizer: Annotated[ServerOptimizerName, Option(help="What shards apply pushes with.")] = (
        "adagrad"
    )
    server_lr: Annotated[float | None, Option(min=0, help="Its learning rate.")] = None
    staleness: Annotated[
        ServerRuleName,
        Option(help=f"What shards do about stale pushes; {NEED_OLD_WEIGHTS} with --no-local-step."),
    ] = "stash"
    max_staleness: Annotated[int | None, Option(min=0, help="Drop and count older pushes.")] = None
    warm_start: Annotated[int, Option(min=0, help="Pushes of one replica before others begin.")] = 0
    fetch: Annotated[
        Literal["background", "wait"], Option(help="Whether the next batch waits for weights.")
    ] = "background"
    push: Annotated[
        Literal["gradients", "differences"], Option(help="Sums of gradients, or differences of weights.")
    ] = "gradients"
    local_step: Annotated[bool, Option(help="Whether replicas step with their own optimizers.")] = True
    steps_by_speed: Annotated[
        bool, Option("--steps-by-speed", help="Let slower replicas push after fewer steps.")
    ] = False
    compression: Annotated[CompressionName, Option(help="Of pushes, with error feedback.")] = "none"
    fetch_compression: Annotated[CompressionName, Option(help="Of what is fetched, likewise.")] = "none"
    max_shard_bytes: Annotated[
        int | None, Option(min=1, metavar="BYTES", help="Split a larger position over several shards.")
    ] = None


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How a task is to be trained; None leaves it to the task.

    Two settings are no options of a command: ``keep_last`` has every validation bring the weights, so that
    they can be kept while training goes on; ``downpour`` trains replicas, None one row.
    """

    ONE_ROW: ClassVar = (
        "sentinels",
        "take",
        "schedule",
        "warm_up",
        "accumulate",
        "clip_norm",
        "diagnose_every",
    )
    """What makes no sense where there are replicas, each with a sentinel and a part of the data."""

    task: Annotated[str, Argument(metavar="[TASK]", help=f"{', '.join(NAMED)} or FILE.py:FUNCTION.")] = (
        "digits"
    )
    data_dir: DataDir = None
    epochs: Annotated[int | None, Option(min=1, help="Times to read the training data.")] = None
    batch_size: Annotated[int | None, Option(min=1, help="Samples of a batch.")] = None
    in_flight: Annotated[
        int | None,
        Option(
            min=1,
            help="Batches a sentinel has under way; if not given, the task's own number, or 1 with replicas, "
            "--optimizer or --lr.",
        ),
    ] = None
    sentinels: Annotated[int, Option(min=1, help="Cut the data into N parts, a sentinel each.")] = 1
    take: Annotated[int | None, Option(min=1, help="Use the first N samples alone.")] = None
    validate_every: Annotated[
        float | None, Option(min=0.01, metavar="SECONDS", help="Validate so often, not each epoch.")
    ] = None
    staleness: GateRule = None
    max_staleness: Annotated[int | None, Option(min=0, help="Refuse older gradients.")] = None
    schedule: Annotated[
        ScheduleName | None,
        Option(
            help="Who waits: nobody, or with flush and 2bw sentinels for an update of --accumulate batches."
        ),
    ] = None
    warm_up: Annotated[
        int | None,
        Option(min=1, metavar="BATCHES", help="Come to --in-flight from one over so many batches."),
    ] = None
    accumulate: Annotated[int | None, Option(min=1, help="Batches for one update of a gate.")] = None
    clip_norm: Annotated[
        float | None,
        Option(
            min=0,
            metavar="NORM",
            help="Clip the norm of the whole gradient, by that of the batch before; see the guide.",
        ),
    ] = None
    ema: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            metavar="DECAY",
            help="Average the weights, as with 0.999; the average is what is validated, and kept in --out.",
        ),
    ] = None
    optimizer: Annotated[OptimizerName | None, Option(help="The optimizer of all gates.")] = None
    lr: Annotated[
        float | None, Option(min=0, help="Its learning rate, or that of the task's own optimizers.")
    ] = None
    diagnose_every: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Measure one batch in N: how stale its gradients are, in a table."),
    ] = None
    keep_best: Annotated[
        str | None, Option(metavar="SCORE", help="Keep the weights best by this score, or 'loss'.")
    ] = None
    patience: Annotated[int | None, Option(min=1, help="Stop after N validations without a better one.")] = (
        None
    )
    seed: Annotated[
        int, Option(min=-(2**63), max=2**63 - 1, help="Of weights, masks and the order of samples.")
    ] = 0
    workers: Annotated[int | None, Option(min=1, help="Threads at work; one makes a run repeatable.")] = None
    intra_op_threads: Annotated[int, Option(min=1, help="Threads that each may use for one operation.")] = 1
    checkpoint_every: Annotated[
        str | None,
        Option(
            metavar="SECONDS|UPDATESu",
            help="Keep in --out what `akkordeon resume` needs, so often: 30 is seconds, 500u updates.",
        ),
    ] = None
    checkpoints_kept: Annotated[int, Option(min=1, help="So many checkpoints, the latest.")] = 3
    keep_last: bool = False
    cut_before: Annotated[
        str | None,
        Option(metavar="NAMES", help="Cut the network anew before these modules, as in 1,2; '' is one gate."),
    ] = None
    downpour: DownpourConfig | None = None

    def __post_init__(self) -> None:
        """Check what types and ranges do not say."""
        super().__post_init__()
        _ = self.checkpoint_rhythm

    @property
    def checkpoint_rhythm(self) -> dict[str, Any]:
        """When checkpoints are taken, as arguments of :meth:`Sentinel.checkpoint`; none where they are not.

        Raises:
            RecipeError: it is no time, and no number of updates.
        """
        every = self.checkpoint_every
        if every is None:
            return {}
        if re.fullmatch("[0-9]+u", every) and int(every[:-1]):
            return {"every_updates": int(every[:-1])}
        if re.fullmatch(r"[0-9]*\.?[0-9]+", every) and float(every):
            return {"every_s": float(every)}
        raise RecipeError(
            f"checkpoints are taken every so many seconds, as in 30, or updates, as in 500u, got {every!r}"
        )

    @property
    def trainers(self) -> int:
        """How many training sentinels there will be."""
        return self.sentinels if self.downpour is None else self.downpour.replicas

    def load_task(self) -> Task:
        """Make the task; see :func:`load_task`."""
        return load_task(self.task, self.data_dir, self.seed)

    def as_plain(self) -> dict[str, Any]:
        """The settings for a file, with paths that lead there from anywhere."""
        file, colon, function = self.task.rpartition(":")
        task = f"{Path(file).expanduser().resolve()}:{function}" if colon else self.task
        data_dir = None if self.data_dir is None else str(Path(self.data_dir).expanduser().resolve())
        return asdict(replace(self, task=task, data_dir=data_dir))

    @classmethod
    def from_plain(cls, description: Mapping[str, Any]) -> Self:
        """The settings that :meth:`as_plain` gave; see :meth:`Settings.from_plain`."""
        downpour = description.get("downpour")
        if isinstance(downpour, Mapping):
            description = {**description, "downpour": DownpourConfig.from_plain(downpour)}
        return super().from_plain(description)


def settings_of(config: type[Settings]) -> Mapping[str, Any]:
    """The type of each setting by name; ``Annotated`` with its option where a command may have it."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in fields(config)}


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of this type, and in the range of its option."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, option = get_args(hint)
        return _fits(value, kind) and _in_range(value, option.min, option.max)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _choices(hint: Any) -> tuple[str, ...]:
    """The names that a setting may have, where they are few."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next(filter(None, map(_choices, get_args(hint))), ())


def _in_range(value: Any, least: float | None, most: float | None) -> bool:
    if value is None:
        return True
    return (least is None or value >= least) and (most is None or value <= most)
