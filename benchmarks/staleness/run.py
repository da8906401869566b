"""What staleness costs and what the rules give back: MNIST test accuracy of every rule, over seeds.

    python benchmarks/staleness/run.py [--quick] [--json FILE] [--data-dir DIR]

784-512-512-10 in three gates, batch 128, SGD 0.05 with momentum 0.9, eight batches in flight, four epochs:
a setting chosen so that staleness hurts. One in flight is the plain loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import akkordeon as ak
from akkordeon.data.datasets import mnist

ARMS: dict[str, tuple[ak.Rule, int]] = {
    "one in flight": (ak.Stash(), 1),
    "Latest": (ak.Latest(), 8),
    "Stash": (ak.Stash(), 8),
    "DC-ASGD-c": (ak.DelayCompensation("constant"), 8),
    "DC-ASGD-a": (ak.DelayCompensation("adaptive"), 8),
}


def network(seed: int, rule: ak.Rule) -> ak.Network:
    torch.manual_seed(seed)
    layers = [
        nn.Sequential(nn.Linear(784, 512), nn.ReLU()),
        nn.Sequential(nn.Linear(512, 512), nn.ReLU()),
        nn.Linear(512, 10),
    ]
    return ak.Network(
        [ak.Gate(layer, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), rule) for layer in layers]
    )


def accuracy_of(arm: str, seed: int, data: object, epochs: int) -> tuple[float, list[float]]:
    """Test accuracy in percent, and the mean staleness of each gate."""
    rule, in_flight = ARMS[arm]
    (x, y), test = data.train, data.test  # type: ignore[attr-defined]
    batches = ak.Batches(x, y, 128, shuffle=True, seed=seed)
    with ak.run(network(seed, rule), engine=ak.Threads(2), seed=seed) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight, epochs=epochs)).wait()
        tested = session.attach(ak.Sentinel.test(test, F.cross_entropy, scores={"accuracy": ak.accuracy}))
        found = 100 * tested.wait().rounds[-1].scores["accuracy"]
        return found, [gate.staleness_mean for gate in session.status().gates]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("AKKORDEON_DATA"))
    given = parser.parse_args()
    if given.data_dir is None:
        sys.exit("this study needs MNIST: give --data-dir or set AKKORDEON_DATA")
    folder = Path(given.data_dir)
    data = mnist(folder / "mnist" if (folder / "mnist").is_dir() else folder)
    seeds, epochs = (1, 1) if given.quick else (5, 4)
    report = {}
    for arm in ARMS:
        runs = [accuracy_of(arm, seed, data, epochs) for seed in range(seeds)]
        accuracies = [accuracy for accuracy, _ in runs]
        sd = statistics.stdev(accuracies) if seeds > 1 else 0.0
        taus = [statistics.mean(t) for t in zip(*(staleness for _, staleness in runs), strict=True)]
        report[arm] = {"accuracy": accuracies, "staleness": taus}
        print(
            f"{arm:14s} {statistics.mean(accuracies):6.2f} ± {sd:4.2f} %   "
            f"({', '.join(f'{a:.2f}' for a in accuracies)})   "
            f"mean τ by gate {', '.join(f'{t:.1f}' for t in taus)}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
