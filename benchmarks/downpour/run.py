"""Speed of Downpour beside Hogwild and DDP: two replicas, two processes, two cores, one run.

python benchmarks/downpour/run.py --quick --json FILE
python benchmarks/downpour/run.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException

import akkordeon as ak

sys.path.append(str(Path(__file__).parents[1] / "throughput"))

from peers import ddp, hogwild, plain
from replicated import ours
from settings import OPTIMIZERS, SETTINGS, Setting, dataset

TRIES = 3
"""gloo's processes now and then abort while they leave; that is no measurement, so it is made again."""

PEERS: dict[str, Callable[..., list[float]]] = {
    "plain, 1 thread": partial(plain, threads=1),
    "Hogwild, 2 processes": hogwild,
    "DDP gloo, 2 processes": ddp,
    "ours, push 1, one gate": partial(ours, push_every=1),
    "ours, push 16, one gate": partial(ours, push_every=16),
    "ours, push 1, gate per Linear": partial(ours, push_every=1, per_linear=True),
    "ours, push 16, gate per Linear": partial(ours, push_every=16, per_linear=True),
    "ours on Ray, push 1, one gate": partial(ours, push_every=1, engine=ak.Ray),
    "ours on Ray, push 16, one gate": partial(ours, push_every=16, engine=ak.Ray),
    "ours on Ray, push 16, per Linear": partial(ours, push_every=16, per_linear=True, engine=ak.Ray),
}
"""Those on Ray start a local cluster each time, so that it takes nothing from the others."""


def measured(
    rounds: int, epochs: int, samples: int, settings: tuple[Setting, ...]
) -> dict[str, dict[str, float]]:
    """Median seconds per epoch by setting and peer; the peers take turns within each round."""
    x, y = dataset(samples)
    found: dict[str, dict[str, list[float]]] = {s.name: {peer: [] for peer in PEERS} for s in settings}
    for number in range(rounds):
        for setting in settings:
            for name, peer in PEERS.items():
                found[setting.name][name] += tried(peer, setting, x, y, epochs, OPTIMIZERS["sgd"])
                seconds = found[setting.name][name][-1]
                print(f"round {number + 1}, {setting.name}: {name} {seconds:.3f} s", file=sys.stderr)
    return {
        setting: {peer: statistics.median(times) for peer, times in by_peer.items()}
        for setting, by_peer in found.items()
    }


def tried(peer: Callable[..., list[float]], *args: Any) -> list[float]:
    for _ in range(TRIES - 1):
        with contextlib.suppress(ProcessExitedException):
            return peer(*args)
    return peer(*args)


def table(medians: dict[str, dict[str, float]]) -> None:
    """Seconds, and samples per second as multiples of Hogwild's and DDP's."""
    print(f"\nmedian seconds per epoch\n{'':34s}" + "".join(f"{setting:>28s}" for setting in medians))
    for name in PEERS:
        print(f"{name:34s}" + "".join(f"{by_peer[name]:28.3f}" for by_peer in medians.values()))
    for peer in ("Hogwild, 2 processes", "DDP gloo, 2 processes"):
        print(f"\nspeed as a multiple of {peer}")
        for name in PEERS:
            if name.startswith("ours"):
                ratios = "".join(f"{by[peer] / by[name]:26.2f} ×" for by in medians.values())
                print(f"{name:34s}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples and one round")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--setting", default="", help="settings with this in their name alone")
    given = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} at the start")
    settings = tuple(s for s in (SETTINGS[:4] if given.quick else SETTINGS) if given.setting in s.name)
    samples, rounds, epochs = (12_288, 1, 2) if given.quick else (60_000, given.rounds, 2)
    medians = measured(rounds, epochs, samples, settings)
    table(medians)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "seconds_per_epoch": medians}, indent=1))


if __name__ == "__main__":
    main()
