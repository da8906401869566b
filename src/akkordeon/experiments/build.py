"""From settings and a task to what is run: the network or its replicas, and the sentinels that feed it."""

from __future__ import annotations

from dataclasses import asdict, replace

from akkordeon.core.errors import RecipeError
from akkordeon.core.schedules import Async
from akkordeon.data.split import deal_data, take_samples
from akkordeon.downpour.recipe import Downpour
from akkordeon.experiments.config import DownpourConfig, TrainConfig
from akkordeon.experiments.planning.blocks import recut
from akkordeon.experiments.presets import (
    optimizer_named,
    rule_named,
    schedule_named,
    server_optimizer_named,
    server_rule_named,
    with_lr,
)
from akkordeon.experiments.tasks.task import Task
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Best, Evaluation, Sentinel, Training

__all__ = [
    "build_downpour",
    "build_network",
    "build_recipe",
    "build_sentinels",
    "build_trainers",
    "build_validator",
    "in_flight_of",
]


def build_recipe(task: Task, config: TrainConfig) -> Network | Downpour:
    """What is run: the task's network as the settings have it, or as many replicas of it."""
    network = build_network(task, config)
    return network if config.downpour is None else build_downpour(network, config.downpour)


def build_network(task: Task, config: TrainConfig) -> Network:
    """The task's network with the rule, the optimizer and the bounds of the settings."""
    network = task.network if config.cut_before is None else _cut_anew(task, config)
    network = network.replacing(
        staleness=None if config.staleness is None else rule_named(config.staleness),
        optimizer=None if config.optimizer is None else optimizer_named(config.optimizer, config.lr),
    )
    if config.lr is not None and config.optimizer is None:
        network = with_lr(network, config.lr)
    if config.accumulate is not None:
        network = network.replacing(accumulate=config.accumulate)
    if config.schedule is not None:
        network = replace(network, schedule=schedule_named(config.schedule, config.accumulate))
    if config.warm_up is not None:
        network = _warmed_up(network, config.warm_up)
    if config.clip_norm is not None:
        network = replace(network, clip_whole_norm=config.clip_norm)
    if config.ema is not None:
        network = network.replacing(ema=config.ema)
    if config.diagnose_every is not None:
        network = network.replacing(diagnose_every=config.diagnose_every)
    if config.max_staleness is not None:
        network = replace(network, max_staleness=config.max_staleness)
    in_flight = in_flight_of(task, config) * config.sentinels
    return replace(network, max_in_flight=max(network.max_in_flight, in_flight))


def _cut_anew(task: Task, config: TrainConfig) -> Network:
    names = [name for name in (config.cut_before or "").split(",") if name]
    example = None if task.network.whole is None else task.example(config.batch_size)
    return recut(task.network, names, example)


def build_downpour(network: Network, config: DownpourConfig) -> Downpour:
    """Replicas of a network, and shards, as the settings have them.

    Raises:
        RecipeError: the settings contradict each other.
    """
    settings = asdict(config)
    optimizer, lr = settings.pop("server_optimizer"), settings.pop("server_lr")
    return Downpour(
        network,
        **settings
        | {
            "server_optimizer": server_optimizer_named(optimizer, lr, config.replicas),
            "staleness": server_rule_named(config.staleness),
            "compression": _compression_named(config.compression),
            "fetch_compression": _compression_named(config.fetch_compression),
        },
    )


def _compression_named(name: str) -> str | None:
    return None if name == "none" else name


def _warmed_up(network: Network, batches: int) -> Network:
    if network.schedule.is_exact:
        raise RecipeError(
            f"warm_up={batches} goes with no schedule={network.schedule}, whose gradients are of one age all "
            "the time; leave one of them out"
        )
    return replace(network, schedule=Async(warm_up=batches))


def in_flight_of(task: Task, config: TrainConfig) -> int:
    """Batches that each training sentinel has under way.

    The task's number was found with its own optimizers in one row; for others it is 1, which never hurts.
    """
    as_found = config.downpour is None and config.optimizer is None and config.lr is None
    return config.in_flight or (task.in_flight if as_found else 1)


def build_sentinels(task: Task, config: TrainConfig) -> list[Training | Evaluation]:
    """The training sentinels, the validation sentinel, and the one that takes checkpoints if any are."""
    rhythm = config.checkpoint_rhythm
    keepers = [Sentinel.checkpoint(**rhythm, name="checkpoint")] if rhythm else []
    return [*build_trainers(task, config), build_validator(task, config), *keepers]


def build_trainers(task: Task, config: TrainConfig) -> list[Training]:
    """The training sentinels: ``train``, or ``train-1`` and so on."""
    batches = task.train_batches(config.batch_size, config.seed)
    if config.take is not None:
        batches = take_samples(batches, config.take)
    return [
        Sentinel.train(
            part,
            task.loss,
            in_flight=in_flight_of(task, config),
            epochs=config.epochs or task.epochs,
            scores=task.scores,
            name="train" if config.sentinels == 1 else f"train-{number}",
        )
        for number, part in enumerate(deal_data(batches, config.sentinels, config.seed), 1)
    ]


def build_validator(task: Task, config: TrainConfig) -> Evaluation:
    """The validation sentinel, ``validate``."""
    best = None
    if config.keep_best is not None or config.patience is not None:
        best = Best(config.keep_best or "loss", patience=config.patience)
    return Sentinel.validate(
        task.validate,
        task.loss,
        scores=task.scores,
        every_s=config.validate_every,
        every_epoch=config.trainers if config.validate_every is None else None,
        best=best,
        keep_last=config.keep_last,
        ema=config.ema is not None,
        name="validate",
    )
