"""Ours, with all checks and reports on: one gate per Linear and five batches in flight, or as planned."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cache
from itertools import islice

import accuracy
import torch.nn.functional as F
from settings import OPTIMIZERS, MakeOptimizer, Setting, build, dataset, gates
from torch import Tensor, nn

import akkordeon as ak
from akkordeon.engines.base import Engine

IN_FLIGHT = 5
"""In the throughput runs."""

WORKERS = 2

RACING = 3
"""In the race: as many as gates, the default; what comes after that costs more updates than it saves time."""


def network(model: nn.Sequential, optimizer: MakeOptimizer, rule: ak.Rule | None = None) -> ak.Network:
    return ak.Network([ak.Gate(part, optimizer, rule or ak.Stash()) for part in gates(model)])


@cache
def plan_of(setting: Setting, optimizer: MakeOptimizer) -> ak.Plan:
    """What the planner finds for a model and its batches, on this machine."""
    x, y = dataset(setting.batch)
    model, here = build(setting, 0), ak.Machines.here(WORKERS)
    return ak.plan(model, example=x, targets=y, loss=F.cross_entropy, optimizer=optimizer, hosts=here)


def ours(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
    optimizer: MakeOptimizer,
    *,
    workers: int = WORKERS,
    rule: ak.Rule | None = None,
) -> list[float]:
    """Seconds per epoch."""
    row = network(build(setting, seed=0), optimizer, rule)
    return seconds_per_epoch(row, IN_FLIGHT, ak.Threads(workers), setting, x, y, epochs)


def as_planned(setting: Setting, x: Tensor, y: Tensor, epochs: int, optimizer: MakeOptimizer) -> list[float]:
    """Seconds per epoch of the layout that the planner takes."""
    plan = plan_of(setting, optimizer)
    in_flight = plan.best.layout.in_flight
    return seconds_per_epoch(plan.network(), in_flight, plan.engine(), setting, x, y, epochs)


def seconds_per_epoch(
    recipe: ak.Network | ak.Downpour,
    in_flight: int,
    engine: Engine,
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
) -> list[float]:
    """Of training; a few batches before are the warm-up and not among them."""
    samples = len(x) // setting.batch * setting.batch
    with ak.run(recipe, engine) as session:
        warm = ak.Batches(x[: 4 * setting.batch], y[: 4 * setting.batch], setting.batch)
        session.attach(ak.Sentinel.train(warm, F.cross_entropy, in_flight=in_flight)).wait()
        data = ak.Batches(x[:samples], y[:samples], setting.batch)
        training = ak.Sentinel.train(data, F.cross_entropy, in_flight=in_flight, epochs=epochs)
        return [epoch.seconds for epoch in session.attach(training).wait().epochs]


def race(
    train: accuracy.Data,
    test: accuracy.Data,
    seed: int,
    *,
    target: float = accuracy.TARGET,
    rule: ak.Rule | None = None,
    plan: ak.Plan | None = None,
) -> float:
    """Seconds of training until the test accuracy is reached.

    Every 100 updates all batches in flight come home and the clock stops for the evaluation, so the row
    runs empty and fills again each time: that is inside our time.

    Args:
        rule: of gates that are not as planned.
        plan: has gates and batches in flight; one gate for each Linear and three in flight if not given.
    """
    x, y = train
    order = accuracy.batches(len(x), seed)
    model, adam = build(accuracy.SETTING, seed), OPTIMIZERS["adam"]
    recipe = network(model, adam, rule) if plan is None else planned(plan, model)
    in_flight = RACING if plan is None else plan.best.layout.in_flight
    engine = ak.Threads(WORKERS) if plan is None else plan.engine()
    with ak.run(recipe, engine, seed=seed) as session:
        accuracy.warm_up(build(accuracy.SETTING, seed), train)
        seconds = 0.0
        for _ in range(accuracy.UPDATES_MAX // accuracy.EVERY):
            batches = ((x[index], y[index]) for index in islice(order, accuracy.EVERY))
            began_s = time.perf_counter()
            session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight)).wait()
            seconds += time.perf_counter() - began_s
            if accuracy.accuracy(session.module(), test) >= target:
                return seconds
    return math.inf


def planned(plan: ak.Plan, model: nn.Module) -> ak.Network | ak.Downpour:
    """What a plan takes, with the weights of another model of that form."""
    blocks = replace(plan.blocks, network=plan.blocks.network.starting_from(model))
    return replace(plan, blocks=blocks).network(plan.best)
