"""How even the gates are that from_module cuts, beside the best cut there is.

python benchmarks/balance/run.py [--gates 2 3 4] [--json FILE]

The models are those of the examples char_gpt.py and resnet.py. Each is opened as far as it can be, and each
piece is measured: a forward, a backward and an update, in processor time of one thread, least of many. A
module costs what its pieces cost, for the search that from_module makes and for the best cut, which is found
by trying all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.pipeline.splitting import cost
from akkordeon.pipeline.splitting.layout import Layout
from akkordeon.pipeline.splitting.split import _split_evenly
from akkordeon.pipeline.splitting.walk import Call

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

MEASURED_S = 0.2
"""How long each piece is measured."""


@dataclass(frozen=True)
class Subject:
    """A model that is cut."""

    name: str
    model: nn.Module
    optimizer: Any
    example: Tensor


def subjects() -> list[Subject]:
    gpt: Any = import_module("char_gpt")
    resnet: Any = import_module("resnet")
    torch.manual_seed(0)
    text = torch.randint(65, (gpt.BATCH_SIZE, gpt.LENGTH))
    images = torch.rand(resnet.BATCH_SIZE, 64)
    return [
        Subject("char-GPT", gpt.GPT(65, gpt.WIDTH), partial(gpt.adamw, steps=1000), text),
        Subject("ResNet", resnet.ResNet(), partial(resnet.sgd, steps=1000), images),
    ]


def pieces_of(subject: Subject) -> Layout:
    """The model opened as far as it can be: PyTorch's own layers stay whole."""
    opened = [
        name
        for name, module in subject.model.named_modules()
        if isinstance(module, nn.Sequential)
        or (not type(module).__module__.startswith("torch.nn.") and next(module.children(), None) is not None)
    ]
    return Layout(subject.model, opened, subject.example)


def processor_s(work: Callable[[], object]) -> float:
    """Processor time, which other processes hardly change."""
    work()
    times: list[float] = []
    while sum(times) < MEASURED_S:
        began_s = time.thread_time()
        work()
        times.append(time.thread_time() - began_s)
    return min(times)


class SumsOfPieces(cost.BlockCosts):
    """Says of a module what its pieces cost."""

    def __init__(self, pieces: Mapping[str, float]) -> None:
        super().__init__(None)
        self._pieces = pieces

    def costs_s(self, calls: Iterable[Call], blocks: Mapping[str, nn.Module]) -> list[float]:
        return [
            sum(seconds for name, seconds in self._pieces.items() if f"{name}.".startswith(f"{call.block}."))
            for call in calls
        ]


def places_found(subject: Subject, gates: int, pieces: Mapping[str, float]) -> list[int]:
    """The pieces that the gates of from_module begin with, all but the first."""
    parts = _split_evenly(subject.model, gates, subject.example, SumsOfPieces(pieces), tie=True)
    names = [part._piece.names[part._piece.first] for part in parts[1:]]
    return [next(i for i, piece in enumerate(pieces) if f"{piece}.".startswith(f"{n}.")) for n in names]


def gate_costs_s(costs: Sequence[float], places: Sequence[int]) -> list[float]:
    sums = [0.0, *accumulate(costs)]
    return [sums[end] - sums[start] for start, end in pairwise([0, *places, len(costs)])]


def compared(subject: Subject, gates: int, layout: Layout, costs: Sequence[float]) -> dict[str, Any]:
    order = [call.block for call in layout.calls]
    allowed = [place for place in range(1, len(order)) if layout.cut_cost(place, tie=True) is not None]
    ways = [list(places) for places in combinations(allowed, gates - 1)]
    best = min(ways, key=lambda places: max(gate_costs_s(costs, places)))
    places = places_found(subject, gates, dict(zip(order, costs, strict=True)))
    found_s, best_s = gate_costs_s(costs, places), gate_costs_s(costs, best)
    return {
        "model": subject.name,
        "gates": gates,
        "pieces": len(order),
        "ways to cut": len(ways),
        "found, ms": [1e3 * seconds for seconds in found_s],
        "found, before": [order[place] for place in places],
        "best, ms": [1e3 * seconds for seconds in best_s],
        "best, before": [order[place] for place in best],
        "largest, found to best": max(found_s) / max(best_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gates", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cost._seconds = processor_s
    found = []
    for subject in subjects():
        layout = pieces_of(subject)
        costs = cost.BlockCosts(subject.optimizer).costs_s(layout.calls, layout.blocks)
        for gates in given.gates:
            row = compared(subject, gates, layout, costs)
            found.append(row)
            for what in ("found", "best"):
                in_ms = " ".join(f"{ms:6.2f}" for ms in row[f"{what}, ms"])
                print(f"{subject.name:<9} {gates} gates  {what:<5} {in_ms} ms  {row[f'{what}, before']}")
            print(f"{'':<9} largest gate, found to best: {row['largest, found to best']:.3f}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
