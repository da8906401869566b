"""How a run is timed and judged: in parts, with the clock stopped between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan
from typing import Any

from work import Batch, Work

__all__ = ["Curve", "Point", "Run", "followed", "loss_after", "units_per_s"]


@dataclass(frozen=True)
class Run:
    """What everybody does in one turn.

    Args:
        work: what is trained.
        seed: of weights and batches.
        parts: how many batches each part has; after each of them the clock stops.
        judges: whether the model is then validated.
    """

    work: Work
    seed: int
    parts: tuple[int, ...]
    judges: bool

    def batches(self) -> list[list[Batch]]:
        """Those of each part."""
        rest = iter(self.work.batches(sum(self.parts), self.seed))
        return [[next(rest) for _ in range(count)] for count in self.parts]


@dataclass(frozen=True)
class Point:
    """Where a run has come to: units of its work, seconds of training, and its loss, NaN if nobody judged."""

    units: int
    seconds: float
    loss: float


Curve = list[Point]


def followed(
    run: Run,
    train: Callable[[Sequence[Batch]], Any],
    judged: Callable[[], float],
    meet: Callable[[], Any] = lambda: None,
) -> Curve:
    """Train part by part.

    Args:
        run: the parts.
        train: on some batches.
        judged: the loss as it is now.
        meet: waits for other processes that train.
    """
    units, seconds = 0, 0.0
    curve = [Point(0, 0.0, judged() if run.judges else nan)]
    for batches in run.batches():
        meet()
        began_s = time.perf_counter()
        train(batches)
        meet()
        seconds += time.perf_counter() - began_s
        units += len(batches) * run.work.units
        curve.append(Point(units, seconds, judged() if run.judges else nan))
    return curve


def units_per_s(curve: Curve) -> float:
    """Of all parts but the first, which is the warm-up."""
    _, warm, *_, last = curve
    return (last.units - warm.units) / (last.seconds - warm.seconds)


def loss_after(curve: Curve, seconds: float) -> float:
    """The loss at a moment, on a straight line between the points before and after it."""
    for before, after in pairwise(curve):
        if seconds <= after.seconds:
            share = (seconds - before.seconds) / (after.seconds - before.seconds)
            return before.loss + share * (after.loss - before.loss)
    return curve[-1].loss
