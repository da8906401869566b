"""One arm of a comparison: a method at a delay with a learning rate and a seed, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.payload import samples
from akkordeon.data.sources import as_batches
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.delays import Kind, delays_of
from akkordeon.experiments.laboratory.on_engine import EngineName, Trained, on_engine
from akkordeon.experiments.presets import OPTIMIZERS, optimizer_named, rule_named
from akkordeon.experiments.tasks.task import Task
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.scores import ScoreBoard

__all__ = ["Arm", "Method", "Outcome", "run_arm"]

POINTS = 50
"""A curve has so many points; the last tenth of the steps is the final loss."""


@dataclass(frozen=True)
class Method:
    """A rule for stale gradients with an optimizer, both by name: ``stash/adamw``."""

    rule: str
    optimizer: str

    @classmethod
    def named(cls, name: str) -> Method:
        """As somebody writes it.

        Raises:
            RecipeError: there is no such rule, or no such optimizer.
        """
        rule, _, optimizer = name.partition("/")
        rule_named(rule)
        if not optimizer:
            raise RecipeError(
                f"{name!r} names no optimizer, as {rule}/adamw does; there are {', '.join(OPTIMIZERS)}"
            )
        optimizer_named(optimizer)
        return cls(rule, optimizer)

    @property
    def undelayed(self) -> str:
        """The name of what it is where no gradient is late."""
        return f"stash/{self.optimizer}"


@dataclass(frozen=True)
class Arm:
    """What is run.

    Attributes:
        task: its name.
        method: as :meth:`Method.named` takes it.
        kind: of delays.
        delay: in updates, at the head of the row.
        lr: learning rate.
        seed: of first weights, of the order of the data, and of what is drawn.
        steps: batches.
        batch_size: the task's own if not given.
        warm_up: batches over which delays grow.
        engine: on which ``delay`` + 1 batches are in flight, whatever the delays then are; None emulates
            exact delays.
        diagnose_every: batches of which one is measured; see :class:`akkordeon.Gate`.
        decay: the learning rate falls along a cosine, from ``lr`` to nothing at the last step.
    """

    task: str
    method: str
    kind: Kind
    delay: int
    lr: float
    seed: int
    steps: int
    batch_size: int | None = None
    warm_up: int = 0
    engine: EngineName | None = None
    diagnose_every: int | None = None
    decay: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of an arm.

    Attributes:
        loss: mean over the last tenth of the steps; infinite where training diverged.
        validation: the loss on the task's validation data; infinite likewise.
        scores: on it, by name.
        curve: pairs of a step and the mean loss since the one before.
        staleness: mean τ of each gate, head first.
        copies: versions of its weights that a gate held at most, head first.
        step_s: seconds a step took, median, or on an engine the mean; 0 where there was none.
        why: it diverged; None where it did not.
        cosine: mean of each gate, head first, where that was measured; see :class:`Diagnosis
            <akkordeon.core.diagnostics.diagnosis.Diagnosis>`.
        correction: likewise.
    """

    loss: float
    validation: float
    scores: Mapping[str, float]
    curve: list[list[float]]
    staleness: list[float]
    copies: list[int]
    step_s: float
    why: str | None = None
    cosine: list[float | None] = field(default_factory=list)
    correction: list[float | None] = field(default_factory=list)


def run_arm(task: Task, arm: Arm) -> Outcome:
    """Train the task's network as an arm says, and judge it.

    Args:
        task: whose first weights are those of the arm's seed.
        arm: what is run.

    Raises:
        RecipeError: the network cannot learn that way.
    """
    torch.manual_seed(arm.seed)  # of whatever draws outside of the gates
    trained = _emulated(task, arm) if arm.engine is None else _on_engine(arm.engine, task, arm)
    validation, scores = (math.inf, {}) if trained.why else _judged(trained.module, task)
    last = trained.losses[-max(1, arm.steps // 10) :]
    return Outcome(
        loss=math.inf if trained.why else sum(last) / len(last),
        validation=validation,
        scores=scores,
        curve=_curve(trained.losses, max(1, arm.steps // POINTS)),
        staleness=trained.staleness,
        copies=trained.copies,
        step_s=trained.step_s,
        why=trained.why,
        cosine=[found.cosine_mean for found in trained.diagnoses if found is not None],
        correction=[found.correction_mean for found in trained.diagnoses if found is not None],
    )


def _emulated(task: Task, arm: Arm) -> Trained:
    delays = delays_of(arm.kind, arm.delay, arm.seed, arm.warm_up)
    row = DelayedRow(_network(task, arm), delays, arm.seed)
    losses: list[float] = []
    times: list[float] = []
    module, why = None, None
    try:
        for x, y in islice(_endless(task, arm), arm.steps):
            began_s = time.perf_counter()
            losses.append(row.learn(x, y, task.loss))
            times.append(time.perf_counter() - began_s)
        row.finish()
        module = row.module()
    except DataError as error:
        why = str(error)
    return Trained(
        losses=losses,
        staleness=[_mean(seen) for seen in row.staleness.values()],
        copies=list(row.copies.values()),
        step_s=sorted(times)[len(times) // 2] if times else 0.0,
        module=module,
        why=why,
        diagnoses=row.diagnoses,
    )


def _on_engine(engine: EngineName, task: Task, arm: Arm) -> Trained:
    return on_engine(
        engine,
        _network(task, arm),
        _endless(task, arm),
        task.loss,
        steps=arm.steps,
        in_flight=arm.delay + 1,
        warm_up=arm.warm_up,
        seed=arm.seed,
    )


def _network(task: Task, arm: Arm) -> Network:
    method = Method.named(arm.method)
    optimizer = optimizer_named(method.optimizer, arm.lr)
    if arm.decay:
        optimizer = _decaying(optimizer, arm.steps)
    network = task.network.replacing(staleness=rule_named(method.rule), optimizer=optimizer)
    if arm.diagnose_every is not None:
        network = network.replacing(diagnose_every=arm.diagnose_every)
    return replace(network, max_in_flight=1 << 16)


def _decaying(make: OptimizerFactory, steps: int) -> OptimizerFactory:
    """The same optimizer with a scheduler; it asks for what that one asks for, as names."""

    @wraps(make)
    def made(parameters: Iterable[Any]) -> tuple[Optimizer, LRScheduler]:
        optimizer = make(parameters)
        assert isinstance(optimizer, Optimizer), "those that go by a name have no scheduler"
        return optimizer, CosineAnnealingLR(optimizer, steps)

    return made


def _endless(task: Task, arm: Arm) -> Iterator[tuple[Any, Any]]:
    """The training data over and over, each time in another order where it is shuffled."""
    source = as_batches(task.train_batches(arm.batch_size, arm.seed), arm.batch_size or task.batch_size)
    while True:
        before = None
        for before in source:
            yield before
        if before is None:
            raise RecipeError("the task's training data can be read once only, and it has come to its end")


def _judged(module: nn.Module | None, task: Task) -> tuple[float, dict[str, float]]:
    """The validation loss, and the scores, of the weights at the end."""
    assert module is not None, "it has not diverged"
    board = ScoreBoard(task.scores)
    module.eval()
    with torch.no_grad():
        for x, y in as_batches(task.validate, task.batch_size):
            outputs = module(x)
            board.add(float(task.loss(outputs, y)), outputs, y, samples(x))
    return board.loss, board.scores()


def _curve(losses: list[float], every: int) -> list[list[float]]:
    pieces = (losses[i : i + every] for i in range(0, len(losses), every))
    return [[min(len(losses), (i + 1) * every), sum(piece) / len(piece)] for i, piece in enumerate(pieces)]


def _mean(seen: Mapping[int, int]) -> float:
    return sum(tau * count for tau, count in seen.items()) / max(1, sum(seen.values()))
