"""A character GPT of 4 and of 25 million weights, and a CNN: how fast everybody trains, and how well.

python benchmarks/models/run.py --data-dir DIR [--only "MODEL;…"] [--seeds 3] [--quick] [--json FILE]

DIR has tiny Shakespeare as ``tinyshakespeare/input.txt``, and the files of MNIST in ``mnist``. Run it on a
quiet machine: plans and figures are seconds of the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from in_gates import exact, in_parts, late, on_ray, on_threads, plan_of
from race import Curve, Run, loss_after, units_per_s
from synchronous import MICRO_BATCHES, ddp, one_f_one_b, plain
from work import Images, Text, Work, adamw, muon

import akkordeon as ak

PLAIN = "plain, 2 threads"
VALIDATED = 10
"""Batches, or thousands of images, of which a loss is taken."""

HALVES = 2
"""Micro-batches of an update that is one update late."""

Ways = dict[str, Callable[[Run], Curve]]


def ways_of(plan: ak.Plan) -> Ways:
    """Everybody who takes part."""
    row = late(plan)
    rules = {
        "stash": ak.Stash(),
        "DC-ASGD-a": ak.DelayCompensation("adaptive"),
        "prediction": ak.Prediction(),
    }
    rows = {f"ours, a row, {name}": partial(on_threads, plan=row, rule=rule) for name, rule in rules.items()}
    return {
        **peers(),
        "ours, as planned": partial(on_threads, plan=plan),
        **rows,
        "ours, a row, flush": flushed(row),
        "ours, 1 in flight": partial(on_threads, plan=exact(plan)),
        "ours on Ray, as planned": partial(on_ray, plan=plan),
    }


def ways_with_muon(plan: ak.Plan) -> Ways:
    """Of those the ones that its steps, which take long, say something new about."""
    row, late_by_one = late(plan), ak.TwoBuffers(HALVES)
    return {
        **peers(),
        "ours, as planned": partial(on_threads, plan=plan),
        "ours, a row, prediction": partial(on_threads, plan=row, rule=ak.Prediction()),
        "ours, a row, 2bw, prediction": partial(
            in_parts, plan=row, schedule=late_by_one, updates_in_flight=2, rule=ak.Prediction()
        ),
        "ours, a row, flush": flushed(row),
    }


def peers() -> Ways:
    return {PLAIN: plain, "DDP gloo, 2 processes": ddp, "1F1B gloo, 2 processes": one_f_one_b}


def flushed(row: ak.Plan) -> Callable[[Run], Curve]:
    """The plain loop, but for rounding."""
    return partial(in_parts, plan=row, schedule=ak.Flush(MICRO_BATCHES))


@dataclass(frozen=True)
class Study:
    """A model, and how long everybody trains it.

    Args:
        work: made from the folder of the data.
        speed: batches of the warm-up and of what is timed.
        rounds: of which the median is taken.
        learning: batches of each part of the runs that are judged; none where none is.
        ways: everybody who takes part, given the plan.
    """

    work: Callable[[Path], Work]
    speed: tuple[int, int]
    rounds: int
    learning: tuple[int, ...] = ()
    ways: Callable[[ak.Plan], Ways] = ways_of

    def shortened(self) -> Study:
        """A look: a few batches of each."""
        return replace(self, speed=(2, 4), rounds=1, learning=(4, 4) if self.learning else ())


def text(width: int, optimizer: Any, data: Path) -> Work:
    written = (data / "tinyshakespeare" / "input.txt").read_text("utf-8")
    return Text.of(written, width, optimizer, VALIDATED)


def images(data: Path) -> Work:
    return Images.of(data / "mnist", 1000 * VALIDATED)


STUDIES = {
    "char-GPT, 4 M": Study(partial(text, 208, adamw), (5, 25), 3, (20,) * 5),
    "char-GPT, 4 M, Muon": Study(partial(text, 208, muon), (5, 25), 3, (20,) * 5, ways_with_muon),
    "char-GPT, 25 M": Study(partial(text, 512, adamw), (3, 10), 1),
    "CNN": Study(images, (50, 500), 3, (150,) * 6),
}


def studied(name: str, study: Study, data: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """Everybody in turn, first only timed, then judged with every seed; after each all figures so far."""
    work = study.work(data)
    plan = plan_of(work)
    plans = {"as planned": plan, "a row": late(plan), "1 in flight": exact(plan)}
    layouts = {way: str(each.best.layout) for way, each in plans.items()}
    print(f"{name}: {layouts}", file=sys.stderr)
    ways = study.ways(plan)
    timed = Run(work, 0, study.speed, judges=False)
    speeds = _in_turn(name, ways, [timed] * study.rounds)
    curves: dict[str, list[Curve]] = {way: [] for way in ways}
    known = {
        "weights": sum(weight.numel() for weight in work.model(0).parameters()),
        "unit": work.unit,
        "layouts": layouts,
    }
    yield {**known, **told(speeds, curves)}
    for seed in range(seeds if study.learning else 0):
        judged = _in_turn(name, ways, [Run(work, seed, study.learning, judges=True)])
        curves = {way: curves[way] + judged[way] for way in ways}
        yield {**known, **told(speeds, curves)}


def _in_turn(name: str, ways: Ways, runs: list[Run]) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {way: [] for way in ways}
    for run in runs:
        for way, follow in ways.items():
            found[way].append(follow(run))
            last = found[way][-1][-1]
            print(f"{name}, seed {run.seed}: {way} {last}", file=sys.stderr, flush=True)
    return found


def told(speeds: dict[str, list[Curve]], curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """Everybody's figures, and the curves of their losses."""
    return {
        "table": {way: row(speeds[way], curves, way) for way in speeds},
        "curves": {way: [[asdict(point) for point in curve] for curve in curves[way]] for way in speeds},
    }


def row(speeds: list[Curve], curves: dict[str, list[Curve]], way: str) -> dict[str, float]:
    """A way's figures: medians of the rounds, and means of the seeds."""
    figures = {"units_per_s": median(map(units_per_s, speeds))}
    if curves[way]:
        fastest_s = [
            min(curve[-1].seconds for curve in of_seed) for of_seed in zip(*curves.values(), strict=True)
        ]
        figures["loss at equal units"] = mean(loss_after(c, c[-1].seconds) for c in curves[way])
        figures["loss at equal seconds"] = mean(
            loss_after(c, s) for c, s in zip(curves[way], fastest_s, strict=True)
        )
    return figures


def print_table(name: str, found: dict[str, Any]) -> None:
    unit, table = found["unit"], found["table"]
    layouts = "; ".join(f"{way}: {layout}" for way, layout in found["layouts"].items())
    print(f"\n{name}, {found['weights']:,} weights; {layouts}\n")
    columns = [f"loss at equal {unit}", "loss at equal seconds"] if len(table[PLAIN]) > 1 else []
    print(f"| | {' | '.join([f'{unit}/s', 'against plain', *columns])} |")
    print("|---|" + "---:|" * (2 + len(columns)))
    for way, figures in table.items():
        rate, *losses = figures.values()
        cells = [f"{rate:,.0f}", f"{rate / table[PLAIN]['units_per_s']:.2f} ×", *(f"{x:.4f}" for x in losses)]
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--only", help="names of models, separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3, help="of the losses")
    parser.add_argument("--quick", action="store_true", help="a look: a few batches of each, one seed")
    parser.add_argument("--json", type=Path, help="write all figures here, as they come")
    given = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
    print(machine)
    found: dict[str, Any] = {"machine": machine}
    for name in given.only.split(";") if given.only else STUDIES:
        study, seeds = STUDIES[name], given.seeds
        if given.quick:
            study, seeds = study.shortened(), 1
        for so_far in studied(name, study, given.data_dir, seeds):
            found[name] = so_far
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print_table(name, found[name])


if __name__ == "__main__":
    main()
