"""A plan: layouts of a model, what each would give, and which to take."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from akkordeon.core.errors import RecipeError
from akkordeon.core.notebook.html import card, paragraph, table
from akkordeon.core.payload import Payload, tensors
from akkordeon.core.schedules import Flush, Schedule, TwoBuffers
from akkordeon.data.sources import as_batches
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.threads import Threads
from akkordeon.experiments.planning.blocks import Blocks, averaging, blocks_of_module, blocks_of_network
from akkordeon.experiments.planning.costs import COMPRESSIONS, Compression, ModelCosts, load_costs
from akkordeon.experiments.planning.dry_run import Forecast, dry_run
from akkordeon.experiments.planning.layouts import RunLayout, proposed
from akkordeon.experiments.planning.machines import Machines, load_machines
from akkordeon.experiments.planning.measure import measured
from akkordeon.experiments.planning.table import table_of_layouts
from akkordeon.experiments.presets import ScheduleName, schedule_named
from akkordeon.experiments.tasks.task import Task
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss

__all__ = ["Plan", "auto", "plan"]

MEASURED = 50
"""Batches that costs are measured on, at the most."""

ABOUT_AS_FAST = 0.95
"""A layout with less staleness is taken if it is at least so fast, beside the fastest."""


LEARN_LESS = "Replicas learn less from a sample than a row does, which is not in these figures."


@dataclass(frozen=True, repr=False)
class Plan:
    """Layouts of a model on machines, run dry.

    Args:
        layouts: what each would give, the fastest first.
        costs: that they were run with.
        blocks: of the model.
        machines: where it is to run.
        staleness_max: rows with a larger mean τ are not taken.
    """

    layouts: Sequence[Forecast]
    costs: ModelCosts
    blocks: Blocks
    machines: Machines
    staleness_max: float

    def __repr__(self) -> str:
        """What it would take."""
        if not self._may_be_taken:
            return f"<Plan: none of {len(self.layouts)} layouts>"
        best = self.best
        return f"<Plan: {best.layout}, {best.samples_per_s:,.0f} samples/s, of {len(self.layouts)} layouts>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each layout, the best of them marked, and why it is that."""
        headings, rows = table_of_layouts(self.layouts)
        if not self._may_be_taken:
            return card(repr(self).strip("<>"), table(headings, rows))
        best = next(i for i, each in enumerate(self.layouts) if each is self.best)
        return card(repr(self).strip("<>"), table(headings, rows, [best]), paragraph(self.why))

    @property
    def _may_be_taken(self) -> list[Forecast]:
        return [
            each
            for each in self.layouts
            if each.fits and (each.layout.replicas or each.staleness <= self.staleness_max)
        ]

    @cached_property
    def best(self) -> Forecast:
        """The layout to take: of those about as fast as the fastest, the least stale, then the simplest.

        Raises:
            RecipeError: none fits into the memory of the hosts, or all are too stale.
        """
        fit = self._may_be_taken
        if not fit:
            raise RecipeError(
                f"no layout fits into the memory of the hosts with a mean τ of at most {self.staleness_max:g}"
            )
        fastest = max(each.samples_per_s for each in fit)
        near = [each for each in fit if each.samples_per_s >= ABOUT_AS_FAST * fastest]
        return min(near, key=lambda each: (round(each.staleness), _effort(each.layout)))

    @property
    def why(self) -> str:
        """In a sentence, why it is the best; and another where there are replicas."""
        replicas = any(each.layout.replicas for each in self.layouts)
        return f"{self._reason}{f' {LEARN_LESS}' if replicas else ''}"

    @property
    def _reason(self) -> str:
        best = self.best
        simplest = min(self.layouts, key=lambda each: _effort(each.layout))
        if best is simplest:
            return f"{best.layout}: none that may be taken would be more than 5 % faster."
        return (
            f"{best.layout}: {best.samples_per_s / simplest.samples_per_s:.2f} times as fast as "
            f"{simplest.layout}; of all within 5 % of the fastest, the simplest of the least stale (mean τ "
            f"{best.staleness:.1f})."
        )

    def as_json(self) -> dict[str, Any]:
        """All figures, for a file."""
        return {
            "best": self.layouts.index(self.best),
            "why": self.why,
            "layouts": list(map(asdict, self.layouts)),
        }

    def network(self, forecast: Forecast | None = None) -> Network | Downpour:
        """What is to be run: the network of a layout, or replicas of it; the best layout if none is given.

        Shards take an equal share of what each replica's weights have moved by.
        """
        layout = (forecast or self.best).layout
        network = self.blocks.cut(layout.ends)
        if layout.schedule != "async":
            return replace(network, schedule=layout.waits)
        if layout.push_every is None:
            return network
        return averaging(network, layout.replicas, layout.push_every, layout.compression)

    def engine(self, forecast: Forecast | None = None) -> Threads:
        """What it is to be run on: a worker for each core of its host, or one that uses them all.

        Raises:
            RecipeError: the layout has several hosts.
        """
        layout = (forecast or self.best).layout
        if len(layout.hosts) > 1:
            wire = ", wire_dtype=torch.int8" if layout.int8 else ""
            gates = "" if layout.replicas else f", placement={layout.gates_by_host}"
            raise RecipeError(
                f"threads are of one host; {layout} need the engine ak.Ray(address{gates}{wire})"
            )
        cores = next(host.cores for host in self.machines.hosts if host.name == layout.hosts[0])
        return Threads(cores // layout.intra_op_threads, layout.intra_op_threads)


def _effort(layout: RunLayout) -> tuple[int, ...]:
    """How much there is of it, to say which of two layouts is the simpler."""
    narrowed = layout.int8 or layout.compression is not None
    sent = len(layout.hosts), layout.push_every or 0, narrowed
    waits = layout.schedule != "async"
    return layout.replicas, waits, *sent, layout.gates, layout.intra_op_threads, layout.in_flight


def plan(
    model: Task | Network | nn.Module,
    *,
    example: Payload | None = None,
    targets: Any = None,
    loss: Loss | None = None,
    optimizer: OptimizerFactory | None = None,
    batch_size: int | None = None,
    hosts: Machines | str | Path | None = None,
    costs: ModelCosts | str | Path | None = None,
    compressions: Sequence[Compression] | None = None,
    schedules: Sequence[ScheduleName] | None = None,
    staleness_max: float = 4.0,
    tie: bool = True,
) -> Plan:
    """Find how to lay a model out: measure its blocks here, propose layouts, run each dry.

    Args:
        model: a task, a network, or any module that :meth:`Network.from_module` can cut.
        example: a batch of inputs; a task has its own.
        targets: what belongs to them, for the loss.
        loss: from (outputs, targets) to one number; the mean square of the outputs if not given.
        optimizer: of a module; a network has its own.
        batch_size: of a task, if another than its own.
        hosts: machines and links, or the TOML file that describes them; this machine if not given.
        costs: measured on another machine, or the file that they are in; measured here if not given.
        compressions: of pushes, of which costs are measured; if not given, all where there are several hosts,
            and none else.
        schedules: of rows that are proposed, as in ``("async", "flush", "2bw")``. With the latter two an
            update is of several such batches. ``async`` if not given, or what the network has.
        staleness_max: rows with a larger mean τ are listed, but not taken. It is not asked of replicas, whose
            shards take but a share of each push.
        tie: whether a module may be cut where gates then use one weight.

    Raises:
        RecipeError: something is missing or contradicts another, or no layout can be taken.
        DataError: a file has no costs in it.
        ScenarioError: a file describes no machines.
    """
    pairs, loss = _batches(model, example, targets, loss, batch_size)
    machines = hosts if isinstance(hosts, Machines) else load_machines(hosts) if hosts else Machines.here()
    if isinstance(costs, str | Path):
        costs = load_costs(costs)
    blocks = _blocks(model, pairs[0][0], optimizer, None if costs is None else costs.cuts, tie)
    if costs is None:
        compressions = compressions or (COMPRESSIONS if len(machines.hosts) > 1 else (None,))
        workers = min(machines.fastest.cores, os.cpu_count() or 1)
        costs = measured(blocks.updating_at_once, pairs, loss, workers, compressions)
    elif tuple(costs.cuts) != blocks.cuts:
        raise RecipeError(
            f"the costs are of a model with blocks at {', '.join(costs.cuts)}, this one has them at "
            f"{', '.join(blocks.cuts)}; measure them with this model"
        )
    layouts = proposed(costs, machines, blocks.may_merge, *_schedules(blocks.network.schedule, schedules))
    forecasts = [dry_run(layout, costs, machines) for layout in layouts]
    forecasts.sort(key=lambda each: -each.samples_per_s)
    return Plan(forecasts, costs, blocks, machines, staleness_max)


def _schedules(
    own: Schedule, asked: Sequence[ScheduleName] | None
) -> tuple[Sequence[ScheduleName], int | None]:
    """Those to propose, and of how many batches an update is, where the network says it."""
    if not isinstance(own, Flush):
        for name in asked or ():
            schedule_named(name, 1)
        return asked or ("async",), None
    if asked is not None:
        raise RecipeError(f"the network has schedule={own}: leave it out, or schedules={tuple(asked)}")
    return ("2bw" if isinstance(own, TwoBuffers) else "flush",), own.micro_batches


def auto(
    module: nn.Module, example: Payload, optimizer: OptimizerFactory | None = None, tie: bool = False
) -> tuple[str, ...]:
    """Where to cut a module into as many gates as pay on this machine: for ``Network.from_module(gates=…)``.

    Args:
        module: any that can be cut.
        example: a batch of inputs.
        optimizer: of the gates.
        tie: whether gates may use one weight.
    """
    found = plan(module, example=example, optimizer=optimizer, tie=tie)
    rows = replace(found, layouts=[each for each in found.layouts if not each.layout.replicas])
    best = rows.best.layout
    if best.intra_op_threads > 1:
        engine = f"ak.Threads(workers=1, intra_op_threads={best.intra_op_threads})"
        logging.getLogger(__name__).warning("%s is best here: run the network on %s", best, engine)
    return found.blocks.cuts_after(best.ends)


def _batches(
    model: Task | Network | nn.Module,
    example: Payload | None,
    targets: Any,
    loss: Loss | None,
    batch_size: int | None,
) -> tuple[list[tuple[Payload, Any]], Loss]:
    if isinstance(model, Task):
        source = as_batches(model.train_batches(batch_size), batch_size or model.batch_size)
        pairs = list(islice(source, MEASURED))
        if not pairs:
            raise RecipeError("the task has no batches to measure costs on")
        return (pairs * MEASURED)[:MEASURED], loss or model.loss
    if example is None:
        raise RecipeError("a plan needs a batch of inputs: ak.plan(model, example=x, …)")
    if loss is None:
        return [(example, example)] * MEASURED, _mean_square
    if targets is None:
        raise RecipeError("a loss needs targets=…, what belongs to the example")
    return [(example, targets)] * MEASURED, loss


def _mean_square(outputs: Payload, targets: Any) -> Tensor:
    squares = [tensor.square().mean() for tensor in tensors(outputs) if tensor.is_floating_point()]
    return sum(squares[1:], squares[0])


def _blocks(
    model: Task | Network | nn.Module,
    example: Payload,
    optimizer: OptimizerFactory | None,
    cuts: Sequence[str] | None,
    tie: bool,
) -> Blocks:
    if isinstance(model, nn.Module):
        return blocks_of_module(model, example, optimizer, cuts, tie)
    network = model.network if isinstance(model, Task) else model
    if optimizer is not None:
        network = network.replacing(optimizer=optimizer)
    return blocks_of_network(network, example, cuts)
