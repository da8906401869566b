"""What the planner predicts beside what threads do: every layout it lists, of three models.

    python benchmarks/planner/run.py [--quick] [--json FILE] [--only "MODEL;…"]

Costs are measured, all layouts run dry, and each is then trained on threads for a while. Run it on a quiet
machine: costs and runs are seconds of the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
from char_gpt import GPT, LENGTH, loss
from settings import SETTINGS, build

ASKED = 0.15
"""How far predictions may be off."""

Model = tuple[nn.Module, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]


def mlp(number: int) -> Model:
    """One of the throughput benchmark's."""
    setting = SETTINGS[number]
    x, y = torch.randn(setting.batch, setting.layers[0]), torch.randint(10, (setting.batch,))
    return build(setting, 0), x, y, F.cross_entropy


def char_gpt() -> Model:
    """The example's, twice as wide."""
    text = torch.randint(65, (16, LENGTH + 1))
    return GPT(65, 128), text[:, :-1], text[:, 1:], loss


MODELS = {
    SETTINGS[2].name: partial(mlp, 2),
    SETTINGS[3].name: partial(mlp, 3),
    "char-GPT, 8 blocks of 128": char_gpt,
}


def study(name: str, seconds: float) -> list[dict[str, Any]]:
    """Every layout of a model, predicted and measured, the fastest first."""
    torch.manual_seed(0)
    model, x, y, loss_of = MODELS[name]()
    adam = partial(torch.optim.Adam, lr=1e-4, fused=True)
    plan = ak.plan(model, example=x, targets=y, loss=loss_of, optimizer=adam)
    rows = []
    for forecast in plan.layouts:
        batches = max(10, round(seconds * forecast.samples_per_s / plan.costs.samples))
        recipe, engine = plan.network(forecast), plan.engine(forecast)
        measured = samples_per_s(recipe, engine, forecast.layout, [(x, y)] * batches, loss_of)
        rows.append(
            {
                "model": name,
                "layout": str(forecast.layout),
                "taken": forecast is plan.best,
                "predicted": forecast.samples_per_s,
                "measured": measured,
                "off": forecast.samples_per_s / measured - 1,
            }
        )
    return rows


def samples_per_s(
    recipe: Any, engine: ak.Threads, layout: Any, batches: Sequence[Any], loss_of: Any
) -> float:
    """Three epochs on threads; the first one warms up."""
    sentinel = ak.Sentinel.train(
        list(batches) * max(1, layout.replicas), loss_of, in_flight=layout.in_flight, epochs=3
    )
    with ak.run(recipe, engine) as session:
        attached = session.attach(sentinel)
        session.wait()
        trainers = attached if isinstance(attached, Sequence) else [attached]
        return sum(
            each.epochs[1].samples / median(epoch.seconds for epoch in each.epochs[1:]) for each in trainers
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a look: half a second an epoch")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--only", help="names of models, separated by semicolons")
    arguments = parser.parse_args()
    rows = []
    print("| model | layout | predicted | measured | off |\n|---|---|---|---|---|", flush=True)
    for name in arguments.only.split(";") if arguments.only else MODELS:
        for row in study(name, 0.5 if arguments.quick else 3.0):
            rows.append(row)
            mark = "**" if row["taken"] else ""
            print(
                f"| {name} | {mark}{row['layout']}{mark} | {row['predicted']:,.0f} | {row['measured']:,.0f} "
                f"| {row['off']:+.1%} |",
                flush=True,
            )
    within = sum(abs(row["off"]) <= ASKED for row in rows)
    print(f"\n{within} of {len(rows)} layouts within {ASKED:.0%}")
    if arguments.json:
        machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
