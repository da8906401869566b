"""The settings of a run as the planner has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from akkordeon.core.errors import RecipeError
from akkordeon.experiments.build import build_network
from akkordeon.experiments.config import DownpourConfig, TrainConfig
from akkordeon.experiments.planning.costs import Compression, ModelCosts
from akkordeon.experiments.planning.machines import Machines
from akkordeon.experiments.planning.plan import Plan, plan
from akkordeon.experiments.presets import ScheduleName

__all__ = ["as_planned", "plan_task", "with_best"]

PLANNED = ("in_flight", "cut_before", "downpour", "sentinels", "intra_op_threads")
"""Settings that the planner chooses."""


def plan_task(
    config: TrainConfig,
    hosts: Machines | str | Path | None = None,
    costs: ModelCosts | str | Path | None = None,
    compressions: Sequence[Compression] | None = None,
    schedules: Sequence[ScheduleName] | None = None,
) -> Plan:
    """A plan for a task as the settings have it; see :func:`plan`."""
    task = config.load_task()
    task = replace(task, network=build_network(task, config))
    return plan(
        task,
        batch_size=config.batch_size,
        hosts=hosts,
        costs=costs,
        compressions=compressions,
        schedules=schedules,
    )


def as_planned(config: TrainConfig) -> tuple[TrainConfig, Plan]:
    """The settings with the best layout for the threads of this machine.

    Raises:
        RecipeError: the settings say already what the planner is to choose.
    """
    usual = TrainConfig()
    for name in PLANNED:
        if getattr(config, name) != getattr(usual, name):
            option = name.replace("_", "-")
            raise RecipeError(f"the planner chooses the layout: leave out --{option}, or --auto")
    found = plan_task(config, Machines.here(config.workers))
    return with_best(config, found), found


def with_best(config: TrainConfig, found: Plan) -> TrainConfig:
    """The settings with the best layout of a plan for one host."""
    layout, blocks = found.best.layout, found.blocks
    threads = layout.intra_op_threads
    as_it_is = layout.gates == len(blocks) and blocks.example is None
    replicas = None
    if layout.push_every is not None:
        replicas = DownpourConfig(
            replicas=layout.replicas,
            push_every=layout.push_every,
            push="differences",
            server_optimizer="sgd",
            server_lr=1 / layout.replicas,
            compression=layout.compression or "none",
        )
    cuts = None if as_it_is else ",".join(blocks.cuts_after(layout.ends))
    return replace(
        config,
        cut_before=cuts,
        in_flight=layout.in_flight,
        downpour=replicas,
        workers=config.workers if threads == 1 else found.engine().workers,
        intra_op_threads=threads,
    )
