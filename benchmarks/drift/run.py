"""What reactions to drift are worth: how soon a stream that has changed is predicted as well as before.

    python benchmarks/drift/run.py [--quick] [--changes NAME …] [--seeds N …] [--json FILE]

Ten features, and a label that says on which side of a plane they are, in 19 of 20 cases. After 2,000 examples
the plane turns by 135 degrees, at once or little by little. A network of two small gates predicts four
examples and then learns from them, with Adam; a detector of river's watches how it predicts. The one that
watches slow changes was chosen by detectors.py, on other seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
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

BATCH, STEP, WINDOW, NEAR = 4, 20, 200, 0.03
"""Accuracy is that of so many examples, every so many; recovered is who is so near to what it was before."""


@dataclass(frozen=True)
class Turn:
    """A change, and what is done about it."""

    examples: int
    """That it takes."""
    lr: float
    """Of Adam."""
    watch: ak.Drift
    faster: int
    """Examples in which gates learn faster."""
    shadow: int
    """Examples in which a shadow is tried."""

    @property
    def reactions(self) -> dict[str, Sequence[ak.MoreLearning | ak.ResetOptimizers | ak.Shadow]]:
        """What is tried, by its name."""
        more, reset, shadow = (
            ak.MoreLearning(5.0, self.faster // BATCH),
            ak.ResetOptimizers(),
            ak.Shadow(self.shadow),
        )
        return {"none": [], "more learning": [more], "reset": [reset], "shadow": [shadow]}


SLOW = ak.Drift(ADWIN(delta=0.05, clock=1), on="accuracy")

TURNS = {
    "at once": Turn(1, 0.003, ak.Drift(ADWIN()), faster=500, shadow=500),
    "in 1,000": Turn(1000, 0.003, SLOW, faster=1000, shadow=1000),
    "in 2,000": Turn(2000, 0.001, SLOW, faster=2000, shadow=1000),
}


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


def layers_of(seed: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU()), nn.Linear(32, 2)


@dataclass
class Tried:
    """A run: how many of the first 0, 20, 40, … examples were predicted right, alarms, and shadows."""

    right: list[float]
    alarms: tuple[int, ...]
    shadows: list[bool]
    """Whether each took over."""


def tried(turn: Turn, reaction: str, seed: int) -> Tried:
    shadows: list[bool] = []
    sentinel = ak.Sentinel.stream(
        stream_of(turn.examples, seed),
        F.cross_entropy,
        scores={"accuracy": ak.accuracy},
        report_every=STEP // BATCH,
        batch_size=BATCH,
        drift=ak.Drift(turn.watch.detector, turn.watch.on, turn.reactions[reaction]),
    )
    network = ak.Network([ak.Gate(part, partial(torch.optim.Adam, lr=turn.lr)) for part in layers_of(seed)])
    with ak.run(network, engine=ak.Simulator()) as session:
        session.subscribe(lambda it: shadows.append(it.takes_over) if isinstance(it, ShadowTried) else None)
        reports = session.attach(sentinel).wait().stream
    right = {report.examples: report.overall["accuracy"] * report.examples for report in reports}
    return Tried([0.0, *(right[n] for n in range(STEP, EXAMPLES + 1, STEP))], reports[-1].alarms, shadows)


def recovery_of(right: list[float]) -> tuple[int | None, int]:
    """Examples until accuracy is as it was before, and mistakes, both from where the change begins.

    It is as before with the first window that is, after the one with most mistakes: in a slow change accuracy
    may fall, be near again by chance, and fall further.
    """
    change, window = CHANGE // STEP, WINDOW // STEP
    before = (right[change] - right[change - 500 // STEP]) / 500
    of_late = [right[n] - right[n - window] for n in range(change, len(right))]
    lowest = of_late.index(min(of_late))
    is_near = [it >= (before - NEAR) * WINDOW for it in of_late[lowest:]]
    back = (lowest + is_near.index(True)) * STEP if True in is_near else None
    return back, round(EXAMPLES - CHANGE - (right[-1] - right[change]))


def show(name: str, reaction: str, seeds: Sequence[int]) -> list[object]:
    """Try a reaction, print what came of it, and give that."""
    runs = [tried(TURNS[name], reaction, seed) for seed in seeds]
    found = [recovery_of(run.right) for run in runs]
    recoveries = ", ".join("never" if back is None else str(back) for back, _ in found)
    mistakes = [mistakes for _, mistakes in found]
    alarms = [[alarm - CHANGE for alarm in run.alarms] for run in runs]
    shadows = [run.shadows for run in runs]
    print(
        f"{name:8}  {reaction:13}  recovered after {recoveries}; {mean(mistakes):.0f} mistakes {mistakes}; "
        f"alarms after {alarms}; shadows that took over {shadows}",
        flush=True,
    )
    return [name, reaction, list(seeds), found, alarms, shadows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--changes", nargs="+", choices=TURNS, default=list(TURNS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    given = parser.parse_args()
    seeds = given.seeds[:1] if given.quick else given.seeds
    figures = [show(name, it, seeds) for name in given.changes for it in TURNS[name].reactions]
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
