"""Ours on Ray beside DDP and 1F1B with as many processes, and on threads; and a message beside Ray's own.

python benchmarks/ray/run.py [--quick] [--json FILE] [--only throughput|ring] [--setting TEXT]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1] / "throughput"))

import ours
import peers
import ray
import rings
import torch
from settings import OPTIMIZERS, SETTINGS, MakeOptimizer, Setting, build, dataset
from torch import Tensor

import akkordeon as ak
from akkordeon.engines.ray.cluster.connection import join


def ours_on_ray(setting: Setting, x: Tensor, y: Tensor, epochs: int, optimizer: MakeOptimizer) -> list[float]:
    """Seconds per epoch with two gates, a process each; the loss is in a third, as the sentinel's is."""
    gates = peers.stages(build(setting, seed=0), 2)
    row = ak.Network([ak.Gate(part, optimizer) for part in gates])
    return ours.seconds_per_epoch(row, ours.IN_FLIGHT, ak.Ray(), setting, x, y, epochs)


PEERS: dict[str, Callable[..., list[float]]] = {
    "DDP gloo, 2 processes": peers.ddp,
    "1F1B gloo, 2 processes": partial(peers.one_f_one_b, micro_batches=2),
    "ours on threads": ours.ours,
    "ours on Ray, 2 gates": ours_on_ray,
}


def throughput(
    rounds: int, epochs: int, samples: int, settings: list[Setting]
) -> dict[str, dict[str, float]]:
    """Median seconds per epoch; the peers take turns within each round."""
    x, y = dataset(samples)
    found: dict[str, dict[str, list[float]]] = {s.name: {peer: [] for peer in PEERS} for s in settings}
    for number in range(rounds):
        for setting in settings:
            for name, peer in PEERS.items():
                found[setting.name][name] += peer(setting, x, y, epochs, OPTIMIZERS["sgd"])
                last = found[setting.name][name][-1]
                print(f"round {number + 1}, {setting.name}: {name} {last:.3f} s", file=sys.stderr)
    return {s: {peer: statistics.median(v) for peer, v in by.items()} for s, by in found.items()}


def print_throughput(medians: dict[str, dict[str, float]]) -> None:
    print("\nmedian seconds per epoch")
    print(f"{'':28s}" + "".join(f"{setting:>28s}" for setting in medians))
    for name in PEERS:
        print(f"{name:28s}" + "".join(f"{by[name]:28.3f}" for by in medians.values()))
    print("\nours on Ray, in samples per second against …")
    for name in list(PEERS)[:-1]:
        ratios = [by[name] / by["ours on Ray, 2 gates"] for by in medians.values()]
        print(f"{name:28s}" + "".join(f"{ratio:26.2f} ×" for ratio in ratios))


def ring(rounds: int, hops: int) -> dict[str, dict[str, float]]:
    """Median milliseconds per message by payload; the rings take turns within each round."""
    all_rings = rings.rings()
    found: dict[str, dict[str, float]] = {}
    for payload, size in rings.PAYLOADS.items():
        times: dict[str, list[float]] = {name: [] for name in all_rings}
        count = hops if size < 1_000_000 else max(10, hops // 5)
        for _ in range(rounds):
            for name, each in all_rings.items():
                times[name].append(each.ms_per_message(size, count * each.hops_factor))
        found[payload] = {
            name: statistics.median(ms[1:] or ms) for name, ms in times.items()
        }  # the first warms up
    for each in all_rings.values():
        each.close()
    return found


def print_ring(found: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(found.values())))
    print(f"\nmilliseconds per message, {rings.TOKENS} under way in a ring of {rings.ACTORS}")
    print(f"{'':10s}" + "".join(f"{name:>20s}" for name in names) + f"{'ours / bare':>14s}")
    for payload, by in found.items():
        ratio = by["ours, a host each"] / by["bare Ray"]
        print(f"{payload:10s}" + "".join(f"{by[name]:20.4f}" for name in names) + f"{ratio:12.2f} ×")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute's look: fewer samples and rounds")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--only", choices=["throughput", "ring"], help="one part alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--setting", default="", help="settings with this in their name alone")
    given = parser.parse_args()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, Ray {ray.__version__}"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {versions}"
    print(machine)
    report: dict[str, Any] = {"machine": machine, "load": os.getloadavg()}
    leave = join(None)  # one local cluster for all of it
    try:
        if given.only != "throughput":
            report["ring"] = ring(*((4, 100) if given.quick else (8, 500)))
            print_ring(report["ring"])
        if given.only != "ring":
            settings = [s for s in SETTINGS if given.setting in s.name]
            rounds, epochs, samples = (1, 2, 12_288) if given.quick else (given.rounds, 2, 60_000)
            report["throughput"] = throughput(rounds, epochs, samples, settings)
            print_throughput(report["throughput"])
    finally:
        leave()
    report["load at the end"] = os.getloadavg()
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
