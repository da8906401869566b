"""Ours: what the planner takes, on threads and on Ray, and the best of its rows with one batch in flight."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from race import Curve, Run, followed
from work import Batch, Work

import akkordeon as ak
from akkordeon.engines.base import Engine
from akkordeon.experiments.planning.layouts import RunLayout

sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
from ours import planned

__all__ = ["exact", "in_parts", "late", "on_ray", "on_threads", "plan_of"]


def plan_of(work: Work) -> ak.Plan:
    """What the planner finds for this machine."""
    [(x, y)] = work.batches(1, seed=0)
    return ak.plan(work.model(0), example=x, targets=y, loss=work.loss, optimizer=work.optimizer)


def exact(plan: ak.Plan) -> ak.Plan:
    """Of a plan the rows with one batch in flight, which are the plain loop on one thread to the bit."""
    rows = [each for each in plan.layouts if _is_exact(each.layout)]
    return replace(plan, layouts=rows)


def _is_exact(layout: RunLayout) -> bool:
    return layout.in_flight == layout.intra_op_threads == 1 and not layout.replicas


def late(plan: ak.Plan) -> ak.Plan:
    """Of a plan the rows with several batches in flight."""
    rows = [each for each in plan.layouts if each.layout.in_flight > 1 < each.layout.gates]
    return replace(plan, layouts=[each for each in rows if not each.layout.replicas])


def on_threads(run: Run, plan: ak.Plan, rule: ak.Rule | None = None) -> Curve:
    """As planned; another rule than stashing is for rows."""
    recipe = planned(plan, run.work.model(run.seed))
    if rule is not None and isinstance(recipe, ak.Network):
        recipe = recipe.replacing(staleness=rule)
    return _trained(run, recipe, plan.engine(), plan.best.layout.in_flight)


def in_parts(
    run: Run,
    plan: ak.Plan,
    schedule: ak.Flush | ak.TwoBuffers,
    updates_in_flight: int = 1,
    rule: ak.Rule | None = None,
) -> Curve:
    """A row as planned, with updates that wait for all parts of a batch."""
    parts = schedule.micro_batches
    row = planned(plan, run.work.model(run.seed))
    assert isinstance(row, ak.Network)
    recipe = replace(row.replacing(staleness=rule), schedule=schedule)

    def sent(batches: Sequence[Batch]) -> list[Batch]:
        cut = (zip(x.chunk(parts), y.chunk(parts), strict=True) for x, y in batches)
        return list(chain.from_iterable(cut))

    return _trained(run, recipe, plan.engine(), updates_in_flight * parts, sent)


def on_ray(run: Run, plan: ak.Plan) -> Curve:
    """As planned, with a process for each gate, or replica, and one for the trainer."""
    recipe = planned(plan, run.work.model(run.seed))
    return _trained(run, recipe, ak.Ray(), plan.best.layout.in_flight)


def _trained(
    run: Run,
    recipe: ak.Network | ak.Downpour,
    engine: Engine,
    in_flight: int,
    sent: Callable[[Sequence[Batch]], list[Batch]] = list,
) -> Curve:
    with ak.run(recipe, engine, seed=run.seed) as session:

        def train(batches: Sequence[Batch]) -> None:
            session.attach(ak.Sentinel.train(sent(batches), run.work.loss, in_flight=in_flight)).wait()

        return followed(run, train, lambda: run.work.judged(session.module()))
