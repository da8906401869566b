"""Step time on a GPU: the plain loop and rows of gates, and who waits for whom there.

    python benchmarks/gpu/run.py --json results.json --figure busy.svg

For each of the models, in turn: the plain loop, a row of one gate, and rows of four gates with one and with
four batches in flight. Then once more under PyTorch's profiler: the calls in which the host waits for the
device, and the share of the time in which the device works.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[1]))
from figures import options, tell
from profiled import Profile, draw, profiled
from work import WORKS, Batch, Work

LAYOUTS = {
    "1 gate, 1 in flight": (1, 1, False),
    "1 gate, 4 in flight": (1, 4, False),
    "4 gates, 1 in flight": (4, 1, False),
    "4 gates, 4 in flight": (4, 4, False),
    "the same, 4 streams": (4, 4, True),
}
"""Gates, batches in flight, and whether each gate has a stream of its own."""

PLAIN = "plain"

Steps = Callable[[list[Batch]], None]
"""Trains on batches, and is done when the device is."""


class Plain:
    """The usual loop; batches are fetched from pinned memory while the device works."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._model = work.model().cuda()
        self._optimizer = work.optimizer(self._model.parameters())

    def train(self, batches: list[Batch]) -> None:
        work, autocast = self._work, self._work.autocast
        for x, y in batches:
            x, y = x.cuda(non_blocking=True), y.cuda(non_blocking=True)
            with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None):
                outputs = self._model(x)
            loss = work.loss(outputs, y)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        torch.cuda.synchronize()

    def end(self) -> None:
        """Nothing is open."""


class Row:
    """Gates on threads, with all checks and reports on."""

    def __init__(self, work: Work, gates: int, in_flight: int, streams: bool) -> None:
        self._work, self._in_flight = work, in_flight
        self._session = ak.Session(work.row(gates), ak.Threads(gates + 1, device_streams=streams))

    def train(self, batches: list[Batch]) -> None:
        sentinel = ak.Sentinel.train(batches, self._work.loss, in_flight=self._in_flight)
        self._session.attach(sentinel).wait()
        torch.cuda.synchronize()

    def end(self) -> None:
        self._session.close()


def makers(work: Work) -> dict[str, Callable[[], Plain | Row]]:
    rows = {name: partial(Row, work, *layout) for name, layout in LAYOUTS.items()}
    return {PLAIN: partial(Plain, work), **rows}


def step_ms(make: Callable[[], Plain | Row], batches: list[Batch], steps: int, rounds: int) -> list[float]:
    """Milliseconds a step, one of each round."""
    one = make()
    many = [batches[i % len(batches)] for i in range(steps)]
    one.train(many[:10])
    found = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        one.train(many)
        found.append((time.perf_counter() - began_s) / steps * 1e3)
    one.end()
    return found


def looked_at(
    make: Callable[[], Plain | Row], batches: list[Batch], steps: int, trace: Path | None
) -> Profile:
    one = make()
    many = [batches[i % len(batches)] for i in range(steps)]
    one.train(many[:10])
    found = profiled(partial(one.train, many), steps, trace)
    one.end()
    return found


def freed() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = options(__doc__, "few steps, one round")
    parser.add_argument("--only", help="some of the models, by a part of their names")
    parser.add_argument("--figure", type=Path, help="draw the device's busy share over time")
    parser.add_argument("--traces", type=Path, help="folder for the profiler's traces")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU that torch.cuda knows")
    torch.set_float32_matmul_precision("high")
    steps, rounds = (10, 1) if asked.quick else (60, 3)
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    looks: dict[str, dict[str, Profile]] = {}
    for name, work in WORKS.items():
        if asked.only and asked.only not in name:
            continue
        batches, of_work = work.batches(8), {}
        looks[name] = {}
        for layout, make in makers(work).items():
            found = step_ms(make, batches, steps, rounds)
            freed()
            trace = asked.traces and asked.traces / f"{name}-{layout}.json".replace(" ", "_")
            look = looks[name][layout] = looked_at(make, batches, min(steps, 30), trace)
            freed()
            of_work[layout] = {
                "step_ms": statistics.median(found),
                "rounds_ms": found,
                "busy": look.busy_share,
                "waits_per_step": look.waits_per_step,
                "waits": look.waits,
            }
            print(f"{name:30} {layout:22} {of_work[layout]}", flush=True)
        plain = of_work[PLAIN]["step_ms"]
        for each in of_work.values():
            each["of_plain"] = each["step_ms"] / plain
        figures[name] = of_work
    tell(figures, asked.json)
    if asked.figure:
        draw(looks, asked.figure)


if __name__ == "__main__":
    main()
