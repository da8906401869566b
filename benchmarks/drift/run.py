"""What reactions to drift are worth: how soon a stream that has changed is predicted as well as before.

    python benchmarks/drift/run.py [--quick] [--json FILE]

Ten features, and a label that says on which side of a plane they are, in 19 of 20 cases. After 2,000 examples
the plane turns by 135 degrees, at once or within 1,000 examples. A network of two small gates predicts four
examples and then learns from them, with Adam; ADWIN, with river's defaults, watches its loss.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from river.drift import ADWIN
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.streams.reports import ShadowTried

EXAMPLES, CHANGE = 5000, 2000
TURNS = {"at once": 1, "within 1,000": 1000}
"""Examples that a change takes."""

REACTIONS = {
    "none": (),
    "more learning": ak.MoreLearning(factor=5.0, updates=125),
    "reset": ak.ResetOptimizers(),
    "shadow": ak.Shadow(examples=500),
}

BATCH, STEP, WINDOW, NEAR = 4, 20, 200, 0.03
"""Accuracy is that of so many examples, every so many; recovered is who is so near to what it was before."""


def stream_of(turn: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (N, 10) and labels (N,); 5 % of these are wrong."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(EXAMPLES, 10, generator=random)
    axes = torch.linalg.qr(torch.randn(10, 2, generator=random)).Q
    turned = ((torch.arange(EXAMPLES) - CHANGE) / turn).clamp(0, 1) * 0.75 * math.pi
    normals = torch.column_stack([turned.cos(), turned.sin()]) @ axes.T
    y = (x * normals).sum(1) > 0
    wrong = torch.rand(EXAMPLES, generator=random) < 0.05
    return x, (y ^ wrong).long()


def network(seed: int) -> ak.Network:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(10, 32), nn.ReLU()), nn.Linear(32, 2)
    return ak.Network([ak.Gate(layer, partial(torch.optim.Adam, lr=0.003)) for layer in layers])


@dataclass
class Tried:
    """A run: how many of the first 0, 20, 40, … examples were predicted right, alarms, and shadows."""

    right: list[float]
    alarms: tuple[int, ...]
    shadows: list[bool]
    """Whether each took over."""


def tried(turn: int, reaction: str, seed: int) -> Tried:
    shadows: list[bool] = []
    sentinel = ak.Sentinel.stream(
        stream_of(turn, seed),
        F.cross_entropy,
        scores={"accuracy": ak.accuracy},
        report_every=STEP // BATCH,
        batch_size=BATCH,
        drift=ak.Drift(ADWIN(), react=REACTIONS[reaction]),
    )
    with ak.run(network(seed), engine=ak.Threads(1)) as session:
        session.subscribe(lambda it: shadows.append(it.takes_over) if isinstance(it, ShadowTried) else None)
        reports = session.attach(sentinel).wait().stream
    right = {report.examples: report.overall["accuracy"] * report.examples for report in reports}
    return Tried([0.0, *(right[n] for n in range(STEP, EXAMPLES + 1, STEP))], reports[-1].alarms, shadows)


def recovery_of(right: list[float]) -> tuple[int | None, int]:
    """Examples from the change until accuracy is as it was before, and mistakes in the rest of the stream."""
    change, window = CHANGE // STEP, WINDOW // STEP
    before = (right[change] - right[change - 500 // STEP]) / 500
    is_near = [right[n] - right[n - window] >= (before - NEAR) * WINDOW for n in range(change, len(right))]
    fell = is_near.index(False) if False in is_near else 0
    back = is_near.index(True, fell) * STEP if True in is_near[fell:] else None
    return back, round(EXAMPLES - CHANGE - (right[-1] - right[change]))


def show(name: str, reaction: str, seeds: int) -> list[object]:
    """Try a reaction, print what came of it, and give that."""
    runs = [tried(TURNS[name], reaction, seed) for seed in range(seeds)]
    found = [recovery_of(run.right) for run in runs]
    recoveries = ", ".join("never" if back is None else str(back) for back, _ in found)
    mistakes = [mistakes for _, mistakes in found]
    alarms = [[alarm - CHANGE for alarm in run.alarms] for run in runs]
    shadows = [run.shadows for run in runs]
    print(
        f"{name:12}  {reaction:13}  recovered after {recoveries}; {mean(mistakes):.0f} mistakes {mistakes}; "
        f"alarms after {alarms}; shadows that took over {shadows}",
        flush=True,
    )
    return [name, reaction, found, alarms, shadows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    given = parser.parse_args()
    figures = [show(name, reaction, 1 if given.quick else 5) for name in TURNS for reaction in REACTIONS]
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
