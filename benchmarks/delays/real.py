"""Runs on threads here, with a clock that stands still while they are judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from emulated import LONGEST, Point, judged
from torch import nn
from ways import Batch, Way, batches_of, merged, micro_batches

import akkordeon as ak
from akkordeon.experiments.presets import optimizer_named, rule_named

__all__ = ["Timed"]

THREADS = 2


@dataclass(frozen=True)
class Timed:
    """A run until it comes to a loss.

    Attributes:
        task: with the first weights of the seed.
        seed: of the order of the data.
        optimizer: by name.
        lr: its learning rate.
        steps: of plain, whose loss is the target; others may take a few times as many.
        every: so many updates the clock is stopped and a loss is taken.
        until: the target, if there is one already.
    """

    task: ak.Task
    seed: int
    optimizer: str
    lr: float
    steps: int
    every: int
    until: float | None = None

    def plain(self, threads: int) -> list[Point]:
        """The plain loop with so many threads for each operation: pairs of seconds and the loss then."""
        modules = [gate.module for gate in self.task.network.gates]
        model = nn.Sequential(*modules).train()
        optimizer = optimizer_named(self.optimizer, self.lr)(model.named_parameters())

        def train(batches: Sequence[Batch]) -> None:
            model.train()
            for x, y in batches:
                optimizer.zero_grad()
                self.task.loss(model(x), y).backward()
                optimizer.step()

        with _intra_op(threads):
            return self._followed(train, lambda: model)

    def ours(self, way: Way, rule: str, gates: int) -> list[Point]:
        """A row of so many gates on as many workers."""
        row = merged(self.task.network, gates).replacing(
            staleness=rule_named(rule), optimizer=optimizer_named(self.optimizer, self.lr)
        )
        with ak.run(way.applied(row), ak.Threads(workers=THREADS), seed=self.seed) as session:

            def train(batches: Sequence[Batch]) -> None:
                micros = [micro for batch in batches for micro in micro_batches(batch, way.micros)]
                recipe = ak.Sentinel.train(micros, self.task.loss, in_flight=way.in_flight)
                session.attach(recipe).wait()

            return self._followed(train, session.module)

    def _followed(
        self, train: Callable[[Sequence[Batch]], None], module: Callable[[], nn.Module]
    ) -> list[Point]:
        batches, seconds, points = batches_of(self.task, self.seed), 0.0, []
        most = self.steps if self.until is None else LONGEST * self.steps
        for _ in range(most // self.every):
            some = list(islice(batches, self.every))
            began_s = time.perf_counter()
            train(some)
            seconds += time.perf_counter() - began_s
            points.append([seconds, judged(module(), self.task)])
            if self.until is not None and points[-1][1] <= self.until:
                break
        return points


@contextmanager
def _intra_op(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
