"""What checkpoints cost: the time between updates with one every few seconds, and without.

python benchmarks/checkpoints/run.py [--quick] [--json FILE] [--every S] [--rounds N]

784-2048-2048-2048-10 in four gates, batches of 128, two workers. Runs with and without take turns. Every
checkpoint is written to disk, in a folder that is removed afterwards.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import akkordeon as ak
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder

sys.path.insert(0, str(Path(__file__).parents[1]))
import figures

BATCH, SAMPLES = 128, 12_800


class Timed(torch.optim.Adam):
    """Notes when each of its steps is over."""

    at_s: ClassVar[list[float]] = []

    def step(self, closure: Any = None) -> Any:
        done = super().step(closure)
        self.at_s.append(time.monotonic())
        return done


def network() -> ak.Network:
    """The row; the updates of its first gate are timed, which come last of each batch."""
    torch.manual_seed(0)
    sizes = [784, 2048, 2048, 2048]

    def gate(i: int) -> ak.Gate:
        layers = nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())
        return ak.Gate(layers, Timed if i == 0 else torch.optim.Adam)

    return ak.Network([*(gate(i) for i in range(3)), ak.Gate(nn.Linear(2048, 10), torch.optim.Adam)])


def intervals_ms(seconds: float, every_s: float | None) -> tuple[list[float], int, list[float]]:
    """Train so long: milliseconds from update to update, checkpoints written, and seconds each took."""
    x, y = torch.randn(SAMPLES, 784), torch.randint(10, (SAMPLES,))
    Timed.at_s = []
    written_s: list[float] = []
    with tempfile.TemporaryDirectory() as path, ak.run(network(), ak.Threads(2)) as session:
        folder = CheckpointFolder(Path(path))

        def write(record: Any) -> None:
            if isinstance(record, Checkpoint):
                began_s = time.monotonic()
                folder.write(record)
                written_s.append(time.monotonic() - began_s)

        session.subscribe(write)
        trainer = ak.Sentinel.train(
            ak.Batches(x, y, BATCH), nn.CrossEntropyLoss(), in_flight=2, seconds=seconds
        )
        keeper = [] if every_s is None else [ak.Sentinel.checkpoint(every_s=every_s)]
        session.attach_all([trainer, *keeper])
        session.attachments[0].wait()
        at_s = Timed.at_s[20:]  # after the first ones
    return [1000 * (b - a) for a, b in itertools.pairwise(at_s)], len(written_s), written_s


def summary(times_ms: list[float]) -> dict[str, float]:
    """Median, mean, 99th percentile and longest."""
    in_order = sorted(times_ms)
    return {
        "median_ms": statistics.median(in_order),
        "mean_ms": statistics.fmean(in_order),
        "p99_ms": in_order[int(0.99 * (len(in_order) - 1))],
        "longest_ms": in_order[-1],
        "updates": len(in_order),
    }


def measure(rounds: int, seconds: float, every_s: float) -> dict[str, Any]:
    """Both, in turn."""
    found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    took_s: list[float] = []
    for number in range(rounds):
        for name, every in (("without", None), ("with", every_s)):
            times_ms, written, write_s = intervals_ms(seconds, every)
            took_s += write_s
            found[name].append({**summary(times_ms), "checkpoints": written})
            print(f"round {number + 1}, {name}: {found[name][-1]}", file=sys.stderr)
    median = {
        name: {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    pairs = list(zip(found["with"], found["without"], strict=True))
    return {
        **median,
        "every_s": every_s,
        "ratio_of_medians": statistics.median(w["median_ms"] / o["median_ms"] for w, o in pairs),
        "ratio_of_means": statistics.median(w["mean_ms"] / o["mean_ms"] for w, o in pairs),
        "seconds_to_write": statistics.median(took_s) if took_s else None,
    }


def main() -> None:
    parser = figures.options(__doc__, quick="one short round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds, seconds = (1, 8.0) if options.quick else (options.rounds, 40.0)
    result = measure(rounds, seconds, 2.0 if options.quick else options.every)
    figures.tell(result, options.json)


if __name__ == "__main__":
    main()
