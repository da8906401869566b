"""Ways to train a row, all with the same samples in an update: micro-batches, and how many are in flight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

import akkordeon as ak
from akkordeon.core.schedules import ASYNC, Schedule
from akkordeon.data.sources import as_batches

__all__ = ["Way", "batches_of", "merged", "micro_batches"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Way:
    """How a row is fed.

    Attributes:
        schedule: who waits for an update.
        micros: micro-batches of an update.
        in_flight: of them.
    """

    schedule: Literal["flush", "2bw", "async"]
    micros: int
    in_flight: int

    def __str__(self) -> str:
        """As in a table."""
        if self.schedule != "async":
            return f"{self.schedule}, {self.micros} micro-batches"
        gathered = f" micro-batches, {self.micros} an update" if self.micros > 1 else ""
        return f"async, {self.in_flight} in flight{gathered}"

    def applied(self, network: ak.Network) -> ak.Network:
        """The network as it is run so."""
        if self.schedule == "async":
            network = network.replacing(accumulate=self.micros)
        schedules: dict[str, Schedule] = {
            "flush": ak.Flush(self.micros),
            "2bw": ak.TwoBuffers(self.micros),
            "async": ASYNC,
        }
        return replace(network, schedule=schedules[self.schedule])


def merged(network: ak.Network, gates: int) -> ak.Network:
    """The same row in fewer gates, of as many modules each."""
    modules, each = [gate.module for gate in network.gates], len(network.gates) // gates
    parts = [modules[i : i + each] for i in range(0, len(modules), each)]
    return ak.Network([ak.Gate(nn.Sequential(*part), network.gates[0].optimizer) for part in parts])


def batches_of(task: ak.Task, seed: int) -> Iterator[Batch]:
    """The training data over and over, in another order each time; the same for all with that seed."""
    source = as_batches(task.train_batches(None, seed), task.batch_size)
    while True:
        yield from source


def micro_batches(batch: Any, micros: int) -> Iterator[Batch]:
    """A batch in parts."""
    x, y = batch
    yield from zip(x.chunk(micros), y.chunk(micros), strict=True)
