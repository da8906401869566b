"""Steps to a loss, from curves with emulated delays: each recipe with the learning rate that suits it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from statistics import mean
from typing import Any

import torch
from kept import Kept
from torch import nn
from ways import batches_of, merged, micro_batches

import akkordeon as ak
from akkordeon.core.errors import DataError
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.study import TUNING_SEED
from akkordeon.experiments.presets import optimizer_named, rule_named

__all__ = ["Curves", "Late", "Recipe", "judged", "reached"]

JUDGED, AT_ONCE = 256, 64
"""Rows of the validation data that a loss is taken of, and how many at once."""

LONGEST = 4
"""A run ends after so many times the steps of the plain one."""

Point = list[float]
"""What was spent, and the validation loss then."""


Late = tuple[tuple[int, ...], ...]
"""Of one micro-batch after the other: its delay at each gate, in later forwards, head first."""


@dataclass(frozen=True)
class Seen:
    """Delays that were seen somewhere, over and over; see :class:`Delays`."""

    late: Late

    def of(self, batch: int, gates: int) -> tuple[int, ...]:
        """Of a batch."""
        return self.late[batch % len(self.late)]


@dataclass(frozen=True)
class Recipe:
    """What a curve depends on, besides learning rate and seed.

    Attributes:
        rule: for stale gradients, by name.
        optimizer: likewise.
        late: delays, never more further down the row.
        micros: micro-batches of an update.
    """

    rule: str
    optimizer: str
    late: Late
    micros: int = 1

    @property
    def gates(self) -> int:
        """How many."""
        return len(self.late[0])

    @property
    def mean_delays(self) -> list[float]:
        """Of each gate, in updates."""
        return [round(mean(delays) / self.micros, 1) for delays in zip(*self.late, strict=True)]

    @classmethod
    def plain(cls, optimizer: str) -> Recipe:
        """No gradient is late: of the plain loop, of 1F1B and of flush."""
        return cls("stash", optimizer, ((0,),))

    @classmethod
    def two_buffers(cls, rule: str, optimizer: str) -> Recipe:
        """All gradients are one update late."""
        return cls(rule, optimizer, ((1,),))


@torch.no_grad()
def judged(module: nn.Module, task: ak.Task) -> float:
    """The validation loss."""
    x, y = (tensor[:JUDGED].split(AT_ONCE) for tensor in task.validate)
    module.eval()
    losses = [float(task.loss(module(a), b)) for a, b in zip(x, y, strict=True)]
    return sum(losses) / len(losses)


def reached(points: list[Point], target: float) -> float:
    """What was spent when the loss was first that low, on a line between points; infinite if never."""
    if points and points[0][1] <= target:
        return points[0][0]
    for (before, above), (after, below) in pairwise(points):
        if below <= target:
            return before + (after - before) * (above - target) / (above - below)
    return math.inf


class Curves:
    """Runs what is asked for, once.

    Args:
        make_task: with the first weights of a seed.
        kept: what was run before.
        steps: of the plain run whose loss is the target.
        every: so many steps a loss is taken.
        lrs: to choose from.
    """

    def __init__(
        self,
        make_task: Callable[[int], ak.Task],
        kept: Kept,
        steps: int,
        every: int,
        lrs: tuple[float, ...],
    ) -> None:
        self.make_task, self.steps, self.every = make_task, steps, every
        self._kept, self._lrs = kept, lrs

    def lr(self, recipe: Recipe) -> float:
        """With the lowest loss after the steps, on a seed of its own; the smallest where all diverge."""
        ends = {lr: self._points(recipe, lr, TUNING_SEED, self.steps) for lr in sorted(self._lrs)}
        return min(ends, key=lambda lr: ends[lr][-1][1] if ends[lr] else math.inf)

    def target(self, optimizer: str, seed: int) -> float:
        """The loss that plain reaches."""
        plain = Recipe.plain(optimizer)
        return self._points(plain, self.lr(plain), seed, self.steps)[-1][1]

    def steps_to_target(self, recipe: Recipe, seed: int) -> float:
        """Updates until then; infinite if it never comes there."""
        target = self.target(recipe.optimizer, seed)
        plain = recipe == Recipe.plain(recipe.optimizer)
        steps, until = (self.steps, None) if plain else (LONGEST * self.steps, target)
        return reached(self._points(recipe, self.lr(recipe), seed, steps, until), target)

    def _points(
        self, recipe: Recipe, lr: float, seed: int, steps: int, until: float | None = None
    ) -> list[Point]:
        found: list[Point] = self._kept(
            lambda: self._run(recipe, lr, seed, steps, until),
            **asdict(recipe),
            lr=lr,
            seed=seed,
            steps=steps,
            every=self.every,
            until=until,
        )
        return found

    def _run(self, recipe: Recipe, lr: float, seed: int, steps: int, until: float | None) -> list[Point]:
        torch.manual_seed(seed)
        task, points = self.make_task(seed), []
        row = DelayedRow(_network(task, recipe, lr), Seen(recipe.late), seed)
        try:
            for step, batch in enumerate(islice(batches_of(task, seed), steps), 1):
                for x, y in micro_batches(batch, recipe.micros):
                    row.learn(x, y, task.loss)
                if step % self.every == 0:
                    points.append([step, judged(row.module(), task)])
                    if until is not None and points[-1][1] <= until:
                        break
        except DataError:  # it diverged
            return []
        return points


def _network(task: ak.Task, recipe: Recipe, lr: float) -> ak.Network:
    settings: dict[str, Any] = {"accumulate": recipe.micros}
    network = merged(task.network, recipe.gates).replacing(
        staleness=rule_named(recipe.rule), optimizer=optimizer_named(recipe.optimizer, lr), **settings
    )
    return replace(network, max_in_flight=1 << 16)
