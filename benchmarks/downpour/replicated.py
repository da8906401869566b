"""Ours: two replicas, each with half of the batches, and one row of shards; on threads or on Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import akkordeon as ak

sys.path.append(str(Path(__file__).parents[1] / "throughput"))

from settings import MakeOptimizer, Setting, build, gates

TWO_WORKERS = partial(ak.Threads, 2)


def recipe(
    model: nn.Sequential, sgd: MakeOptimizer, push_every: int, per_linear: bool, replicas: int = 2
) -> ak.Downpour:
    """Hogwild's arithmetic at ``push_every=1``; with local steps where pushes are rare."""
    parts = gates(model) if per_linear else [model]
    network = ak.Network([ak.Gate(part, sgd) for part in parts])
    return ak.Downpour(
        network, replicas=replicas, push_every=push_every, server_optimizer=sgd, local_step=push_every > 1
    )


def ours(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
    sgd: MakeOptimizer,
    *,
    push_every: int = 1,
    per_linear: bool = False,
    replicas: int = 2,
    engine: Callable[[], Any] = TWO_WORKERS,
) -> list[float]:
    """Seconds per epoch, of the replica that took longest for all; a first sentinel warms everything up."""
    samples = len(x) // setting.batch * setting.batch
    whole = ak.Batches(x[:samples], y[:samples], setting.batch)
    in_flight = 3 if per_linear else 1
    train = partial(ak.Sentinel.train, loss=F.cross_entropy, in_flight=in_flight)
    downpour = recipe(build(setting, seed=0), sgd, push_every, per_linear, replicas)
    with ak.run(downpour, engine=engine()) as session:
        session.attach(train(whole.take(8 * setting.batch), name="warm")).wait()
        training = session.attach(train(whole, name="train", epochs=epochs)).wait()
        slowest_s = max(sum(epoch.seconds for epoch in each.epochs) for each in training)
    return [slowest_s / epochs]
