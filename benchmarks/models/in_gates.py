"""Ours: what the planner takes, on threads and on Ray, and the best of its rows with one batch in flight."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from race import Curve, Run, followed
from work import Batch, Work

import akkordeon as ak
from akkordeon.engines.base import Engine
from akkordeon.experiments.planning.layouts import RunLayout

sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
from ours import planned

__all__ = ["exact", "on_ray", "on_threads", "plan_of"]


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


def on_threads(run: Run, plan: ak.Plan, rule: ak.Rule | None = None) -> Curve:
    """As planned; another rule than stashing is for rows."""
    return _trained(run, plan, plan.engine(), rule)


def on_ray(run: Run, plan: ak.Plan) -> Curve:
    """As planned, with a process for each gate, or replica, and one for the trainer."""
    return _trained(run, plan, ak.Ray(), None)


def _trained(run: Run, plan: ak.Plan, engine: Engine, rule: ak.Rule | None) -> Curve:
    recipe, in_flight = planned(plan, run.work.model(run.seed)), plan.best.layout.in_flight
    if rule is not None and isinstance(recipe, ak.Network):
        recipe = recipe.replacing(staleness=rule)
    with ak.run(recipe, engine, seed=run.seed) as session:

        def train(batches: Sequence[Batch]) -> None:
            session.attach(ak.Sentinel.train(list(batches), run.work.loss, in_flight=in_flight)).wait()

        return followed(run, train, lambda: run.work.judged(session.module()))
