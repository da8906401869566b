"""Ours: one gate per Linear, five batches in flight, stashing, with all checks and reports on."""

from __future__ import annotations

import math
import time
from itertools import islice

import accuracy
import torch
import torch.nn.functional as F
from settings import Setting, build, gates
from torch import Tensor, nn

import akkordeon as ak

IN_FLIGHT = 5
"""In the throughput runs."""

RACING = 3
"""In the race: as many as gates, the default; what comes after that costs more updates than it saves time."""


def network(
    model: nn.Sequential, optimizer: type[torch.optim.Optimizer], lr: float, rule: ak.Rule
) -> ak.Network:
    return ak.Network([ak.Gate(part, lambda params: optimizer(params, lr=lr), rule) for part in gates(model)])


def ours(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
    lr: float,
    *,
    workers: int = 2,
    rule: ak.Rule | None = None,
    model: nn.Sequential | None = None,
) -> list[float]:
    """Seconds per epoch; the first epoch of all is the warm-up and not among them."""
    samples = len(x) // setting.batch * setting.batch
    row = network(model or build(setting, seed=0), torch.optim.SGD, lr, rule or ak.Stash())
    with ak.run(row, engine=ak.Threads(workers)) as session:
        warm = ak.Batches(x[: 4 * setting.batch], y[: 4 * setting.batch], setting.batch)
        session.attach(ak.Sentinel.train(warm, F.cross_entropy, in_flight=IN_FLIGHT)).wait()
        data = ak.Batches(x[:samples], y[:samples], setting.batch)
        training = session.attach(
            ak.Sentinel.train(data, F.cross_entropy, in_flight=IN_FLIGHT, epochs=epochs)
        ).wait()
        return [epoch.seconds for epoch in training.epochs]


def race(
    train: accuracy.Data,
    test: accuracy.Data,
    seed: int,
    *,
    workers: int = 2,
    target: float = accuracy.TARGET,
    rule: ak.Rule | None = None,
) -> float:
    """Seconds of training until the test accuracy is reached.

    Every 100 updates all batches in flight come home and the clock stops for the evaluation, so the row
    runs empty and fills again each time: that is inside our time.
    """
    x, y = train
    order = accuracy.batches(len(x), seed)
    row = network(build(accuracy.SETTING, seed), torch.optim.Adam, accuracy.LR, rule or ak.Stash())
    with ak.run(row, engine=ak.Threads(workers), seed=seed) as session:
        accuracy.warm_up(build(accuracy.SETTING, seed), train)
        seconds = 0.0
        for _ in range(accuracy.UPDATES_MAX // accuracy.EVERY):
            batches = ((x[index], y[index]) for index in islice(order, accuracy.EVERY))
            began_s = time.perf_counter()
            session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=RACING)).wait()
            seconds += time.perf_counter() - began_s
            if accuracy.accuracy(session.module(), test) >= target:
                return seconds
    return math.inf
