"""A run on an engine, with so many batches in flight: gradients are as late as they come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile, tee
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from akkordeon.core.diagnostics.diagnosis import Diagnosis
from akkordeon.core.errors import DataError, SentinelFailedError
from akkordeon.core.payload import Payload
from akkordeon.core.schedules import Async
from akkordeon.engines.simulator.compute import Compute
from akkordeon.engines.simulator.engine import Simulator
from akkordeon.engines.threads import Threads
from akkordeon.experiments.run import run
from akkordeon.experiments.schedules.measure_costs import measure_costs
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.sentinels.recipes import Sentinel

__all__ = ["EngineName", "Trained", "on_engine"]

EngineName: TypeAlias = Literal["threads", "simulator"]
"""Here; or every gate on a machine of its own, in virtual time, with costs that are measured here."""

MEASURED = 20
"""Batches that costs are measured on for the simulator."""

Batches = Iterator[tuple[Any, Any]]


@dataclass(frozen=True)
class Trained:
    """What came of a run.

    Attributes:
        losses: of each batch, before gates learned from it.
        staleness: mean τ of each gate, head first; on an engine nothing where it diverged.
        copies: versions of its weights that a gate held at most, head first; likewise.
        step_s: seconds that a batch took.
        module: with the weights at the end; None where it diverged.
        why: it diverged.
        diagnoses: what each gate has measured, head first, where it has; likewise.
    """

    losses: list[float]
    staleness: list[float]
    copies: list[int]
    step_s: float
    module: nn.Module | None
    why: str | None = None
    diagnoses: list[Diagnosis | None] = field(default_factory=list)


def on_engine(
    name: EngineName,
    network: Network,
    batches: Batches,
    loss: Loss,
    *,
    steps: int,
    in_flight: int,
    warm_up: int = 0,
    seed: int = 0,
) -> Trained:
    """Train a network on an engine.

    Args:
        name: of the engine.
        network: the recipe.
        batches: as many as there are steps, at least.
        loss: from (outputs, y) to one number.
        steps: batches.
        in_flight: batches under way.
        warm_up: batches over which it comes to that.
        seed: of the session.

    Raises:
        RecipeError: the network cannot learn that way.
    """
    batches, first = tee(batches)
    losses: list[float] = []

    def noted(outputs: Payload, y: Any) -> Tensor:
        result = loss(outputs, y)
        losses.append(float(result.detach()))
        return result

    recipe = Sentinel.train(islice(batches, steps), noted, in_flight=in_flight, report_every=None)
    network = replace(network, schedule=Async(warm_up))
    try:
        with run(network, _engine(name, network, first, loss), seed=seed) as session:
            (epoch,) = session.attach(recipe).wait().epochs
            gates = session.status().gates
            module = session.module()
    except (DataError, SentinelFailedError) as error:
        if not isinstance(error.__cause__ or error, DataError):
            raise
        return _diverged(losses, str(error))
    if epoch.refused:  # exact delays take that for divergence, too
        return _diverged(losses, f"{epoch.refused} of its batches were refused")
    return Trained(
        losses=losses,
        staleness=[gate.staleness_mean for gate in gates],
        copies=[1 + max(gate.staleness, default=0) for gate in gates],
        step_s=epoch.seconds / steps,
        module=module,
        diagnoses=[gate.diagnosis for gate in gates],
    )


def _diverged(losses: list[float], why: str) -> Trained:
    return Trained(list(takewhile(math.isfinite, losses)), [], [], 0.0, None, why)


def _engine(name: EngineName, network: Network, first: Batches, loss: Loss) -> Threads | Simulator:
    if name == "threads":
        return Threads()
    alone = network.replacing(diagnose_every=None)  # what is measured takes no virtual time
    return Simulator(compute=Compute(measure_costs(alone, list(islice(first, MEASURED)), loss)))
