"""What staleness rules cost: a step of each beside a step of plain stashing, and the numbers they keep.

python benchmarks/delays/cost.py [--quick] [--json FILE]

Two rows, 784-512-512-10 with batches of 128 and one gate of 4 million weights with batches of 32; gradients
are two updates late at every gate. Rules take turns, a block of steps each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.delays import Fixed
from akkordeon.pipeline.staleness.named import RULES

sys.path.insert(0, str(Path(__file__).parents[1]))
import figures

DELAY, BLOCK = 2, 20


def momentum(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer beside which a rule has to be cheap."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A dearer one, fused."""
    return torch.optim.Adam(parameters, lr=1e-4, fused=True)


def small() -> tuple[list[nn.Module], int]:
    """The modules of the gates, and the batch size."""
    sizes = [784, 512, 512, 10]
    return [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)], 128


def large() -> tuple[list[nn.Module], int]:
    """One gate of 4.2 million weights."""
    return [nn.Sequential(nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 1280), nn.ReLU())], 32


def kept(row: DelayedRow) -> int:
    """Numbers that the rules of a row keep, beside weights and what the optimizer has."""
    states = [gate._learner_state() for gate in row._gates.values()]
    of_rules = sum(tensor.numel() for state in states for tensor in state["rule"].values())
    earlier = sum(t.numel() for s in states for t in s.get("earlier", {"weights": {}})["weights"].values())
    return of_rules + earlier


def measure(
    made: tuple[list[nn.Module], int], optimizer: Callable[..., torch.optim.Optimizer], rounds: int
) -> dict[str, Any]:
    """Milliseconds of a step with each rule, in turn, and what it keeps for each weight."""
    modules, size = made
    x, y = torch.randn(size, 784), torch.randint(10, (size,))
    rows = {
        name: DelayedRow(ak.Network([ak.Gate(m, optimizer, rule) for m in modules]), Fixed(DELAY))
        for name, rule in RULES.items()
        if rule.keeps_weights
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            for step in range(BLOCK):
                began_s = time.perf_counter()
                row.learn(x, y, F.cross_entropy)
                if step >= DELAY:
                    times[name].append(time.perf_counter() - began_s)
    weights = sum(p.numel() for module in modules for p in module.parameters())
    base = median(times["stash"])
    return {
        name: {
            "step_ms": 1000 * median(times[name]),
            "of_stash": median(times[name]) / base,
            "kept_per_weight": kept(rows[name]) / weights,
            "copies": max(rows[name].copies.values()),
        }
        for name in rows
    }


def main() -> None:
    options = figures.options(__doc__, quick="one round").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 1 if options.quick else 10
    found = {
        f"{shape.__name__}, {optimizer.__name__}": measure(shape(), optimizer, rounds)
        for shape in (small, large)
        for optimizer in (momentum, adam)
    }
    figures.tell(found, options.json)


if __name__ == "__main__":
    main()
