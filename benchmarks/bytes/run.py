"""What travels for a sample in fewer bits, and what that costs in accuracy: a row, and a Downpour. On MNIST.

    python benchmarks/bytes/run.py [--quick] [--seeds N] [--json FILE] [--data-dir DIR]

In the simulator, which counts every byte of a tensor that leaves a host; the mathematics is real.
784-64-64-10, batch 32, equal samples for all. The row has three gates, each on a host of its own, and four
batches in flight. The Downpour has four replicas of one gate, and one shard.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.data.datasets import Dataset, mnist
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.links import Link

BATCH = 32
LR = 0.05
REPLICAS = 4
SGD = partial(torch.optim.SGD, lr=LR)

WIRES = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}
KINDS = (None, "bf16", "int8")
PUSH_EVERY = (1, 16, 64)

LINK = Link(latency_s=1e-3)
COSTS = Compute(
    {
        "shard/*": Cost(message_s=1e-4),
        "replica/*": Cost(forward_s=4e-3, backward_s=5e-3, update_s=1e-3),
        "gate/*": Cost(forward_s=1e-3, backward_s=2e-3),
    }
)

Found = dict[str, float]
"""Bytes for a sample, by where they go, and the accuracy in percent."""


def parts(seed: int) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [
        nn.Sequential(nn.Linear(784, 64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
        nn.Linear(64, 10),
    ]


def row(data: Dataset, seed: int, samples: int, wire: str) -> Found:
    network = ak.Network([ak.Gate(part, SGD) for part in parts(seed)])
    engine = ak.Simulator(seed, links=LINK, compute=COSTS, wire_dtype=WIRES[wire])
    sent, accuracy = trained(network, engine, data, seed, samples, in_flight=4)
    gates = ("gate/0", "gate/1", "gate/2")
    hops = list(pairwise(gates))
    return {
        "inputs": sent["sentinel/t#1", "gate/0"] / samples,
        "forward": sum(sent[hop] for hop in hops) / samples,
        "backward": sum(sent[there, here] for here, there in hops) / samples,
        "accuracy": accuracy,
    }


def downpour(
    data: Dataset, seed: int, samples: int, push_every: int, push: str | None, fetch: str | None
) -> Found:
    """Pushes every gradient, or else how far local steps have come; the replicas' mean moves the shard."""
    local: dict[str, Any] = {"push": "differences", "push_every": push_every}
    recipe = ak.Downpour(
        ak.Network([ak.Gate(nn.Sequential(*parts(seed)), SGD)]),
        replicas=REPLICAS,
        server_optimizer=partial(torch.optim.SGD, lr=LR if push_every == 1 else 1 / REPLICAS),
        fetch="wait",
        compression=push,
        fetch_compression=fetch,
        **({"local_step": False} if push_every == 1 else local),
    )
    engine = ak.Simulator(seed, links=LINK, compute=COSTS)
    sent, accuracy = trained(recipe, engine, data, seed, samples)
    pushed, fetched = (
        sum(size for hop, size in sent.items() if hop[end] == "shard/0") / samples for end in (1, 0)
    )
    return {"pushed": pushed, "fetched": fetched, "accuracy": accuracy}


def trained(
    recipe: Any, engine: ak.Simulator, data: Dataset, seed: int, samples: int, in_flight: int = 1
) -> tuple[dict[tuple[str, str], int], float]:
    """The bytes of training from host to host, and the accuracy in percent."""
    batches = ak.Batches(*data.train, BATCH, shuffle=True, seed=seed)
    train = partial(ak.Sentinel.train, batches, F.cross_entropy, samples=samples, in_flight=in_flight)
    scores = {"accuracy": ak.accuracy}
    with ak.run(recipe, engine, seed=seed) as session:
        session.attach(train(name="t")).wait()
        sent = {(here, there): wire.bytes for here, there, wire in engine.wires()}
        tested = session.attach(ak.Sentinel.test(data.test, F.cross_entropy, scores=scores)).wait()
    return sent, 100 * tested.rounds[-1].scores["accuracy"]


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────


Arms = dict[str, Callable[[int], Found]]
Report = dict[str, dict[str, list[float]]]
"""By arm and figure: one for each seed."""


def rows(data: Dataset, samples: int) -> Arms:
    return {wire: partial(row, data, samples=samples, wire=wire) for wire in WIRES}


def downpours(data: Dataset, samples: int, push_every: int) -> Arms:
    return {
        f"{push_every}, {push or 'float32'}, {fetch or 'float32'}": partial(
            downpour, data, samples=samples, push_every=push_every, push=push, fetch=fetch
        )
        for push, fetch in product(KINDS, KINDS)
    }


def study(arms: Arms, seeds: int) -> Report:
    """Every arm, printed as it is done, beside the first."""
    report: Report = {}
    for name, arm in arms.items():
        found = [arm(seed) for seed in range(seeds)]
        report[name] = {what: [each[what] for each in found] for what in found[0]}
        print(f"{name:28s}{told(report[name], next(iter(report.values()))['accuracy'])}", flush=True)
    return report


def told(found: dict[str, list[float]], exact: list[float]) -> str:
    """Bytes, accuracy, and how much more of it than that of the same seeds in float32."""
    *sizes, accuracies = found.values()
    columns = "".join(f"{statistics.mean(size):>12,.0f}" for size in sizes)
    deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    more = statistics.mean(a - b for a, b in zip(accuracies, exact, strict=True))
    return f"{columns}{statistics.mean(accuracies):>12.2f}{deviation} %{more:>+8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 12,800 samples")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("AKKORDEON_DATA"))
    given = parser.parse_args()
    if given.data_dir is None:
        sys.exit("this needs MNIST: give --data-dir or set AKKORDEON_DATA")
    folder = Path(given.data_dir)
    data = mnist(folder / "mnist" if (folder / "mnist").is_dir() else folder, standardise=True)
    seeds, samples = (1, 12_800) if given.quick else (given.seeds, 40_000)
    print(f"{'row':28s}{'inputs':>12s}{'forward':>12s}{'backward':>12s}{'accuracy':>12s}")
    report = {"row": study(rows(data, samples), seeds)}
    print(f"{'Downpour: every, push, fetch':28s}{'pushed':>12s}{'fetched':>12s}{'accuracy':>12s}")
    for push_every in PUSH_EVERY:
        report[f"push_every {push_every}"] = study(downpours(data, samples, push_every), seeds)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
