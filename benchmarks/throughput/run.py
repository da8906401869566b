"""Everybody in turn, in one run: throughput, time to accuracy, and the bare engine.

python benchmarks/throughput/run.py [--optimizer sgd|adam] [--quick] [--json FILE] [--data-dir DIR]
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
from math import nan
from pathlib import Path
from typing import Any

import accuracy
import ours
import peers
import ring
import torch
from settings import OPTIMIZERS, SETTINGS, Setting, dataset

import akkordeon as ak
from akkordeon.data.datasets import mnist

PEERS: dict[str, Callable[..., list[float]]] = {
    "plain, 1 thread": partial(peers.plain, threads=1),
    "plain, 2 threads": partial(peers.plain, threads=2),
    "Hogwild, 2 processes": peers.hogwild,
    "DDP gloo, 2 processes": peers.ddp,
    "1F1B gloo, 2 processes": partial(peers.one_f_one_b, micro_batches=2),
    "ours, 2 workers": ours.ours,
    "ours, as planned": ours.as_planned,
    "ours, 1 worker": partial(ours.ours, workers=1),
    "ours, 2 workers, DC-ASGD-a": partial(ours.ours, rule=ak.DelayCompensation("adaptive")),
}


def throughput(
    rounds: int, epochs: int, samples: int, settings: tuple[Setting, ...], optimizer: str
) -> dict[str, dict[str, float]]:
    """Median seconds per epoch of every setting and peer; the peers take turns within each round."""
    x, y = dataset(samples)
    found: dict[str, dict[str, list[float]]] = {s.name: {peer: [] for peer in PEERS} for s in settings}
    for number in range(rounds):
        for setting in settings:
            large = setting is SETTINGS[-1]
            for name, peer in PEERS.items():
                if large and name == "ours, 1 worker":  # says nothing new, and takes half a minute
                    continue
                found[setting.name][name] += peer(
                    setting, x, y, 1 if large else epochs, OPTIMIZERS[optimizer]
                )
                print(
                    f"round {number + 1}, {setting.name}: {name} {found[setting.name][name][-1]:.3f} s",
                    file=sys.stderr,
                )
    return {
        setting: {peer: statistics.median(v) for peer, v in by_peer.items() if v}
        for setting, by_peer in found.items()
    }


def print_throughput(medians: dict[str, dict[str, float]]) -> None:
    names = [name for name in PEERS if not name.startswith("ours")]
    print("\nmedian seconds per epoch")
    print(f"{'':28s}" + "".join(f"{setting:>22s}" for setting in medians))
    for name in PEERS:
        print(f"{name:28s}" + "".join(f"{medians[setting].get(name, nan):22.3f}" for setting in medians))
    for mine in ("ours, 2 workers", "ours, as planned"):
        print(f"\n{mine}, in samples per second against …")
        for label, rivals in {
            "the best peer": names,
            "plain, 1 thread": ["plain, 1 thread"],
            "plain, 2 threads": ["plain, 2 threads"],
            "the best of plain": ["plain, 1 thread", "plain, 2 threads"],
        }.items():
            ratios = [min(by[r] for r in rivals) / by[mine] for by in medians.values()]
            print(f"{label:28s}" + "".join(f"{ratio:20.2f} ×" for ratio in ratios))
    ratios = [by["ours, 2 workers, DC-ASGD-a"] / by["ours, 2 workers"] for by in medians.values()]
    print(f"{'DC-ASGD-a / stash, time':28s}" + "".join(f"{ratio:20.2f} ×" for ratio in ratios))


def layouts(settings: tuple[Setting, ...], optimizer: str) -> dict[str, str]:
    """What the planner took for each setting."""
    taken = {s.name: str(ours.plan_of(s, OPTIMIZERS[optimizer]).best.layout) for s in settings}
    print("\nas planned")
    for setting, layout in taken.items():
        print(f"{setting:28s}{layout}")
    return taken


def races(data_dir: Path, seeds: int) -> dict[str, list[float]]:
    """Seconds to 97.5 % test accuracy, seed by seed, the racers in turn."""
    data = mnist(data_dir)
    plan = ours.plan_of(accuracy.SETTING, OPTIMIZERS["adam"])
    print(f"\nas planned: {plan.best.layout}")
    racers = {
        "plain, 2 threads": accuracy.plain,
        "Hogwild, 2 processes": accuracy.hogwild,
        "ours, 2 workers": ours.race,
        "ours, 2 workers, DC-ASGD-a": partial(ours.race, rule=ak.DelayCompensation("adaptive")),
        "ours, as planned": partial(ours.race, plan=plan),
    }
    found: dict[str, list[float]] = {name: [] for name in racers}
    for seed in range(seeds):
        for name, racer in racers.items():
            found[name].append(racer(data.train, data.test, seed))
            print(f"seed {seed}: {name} {found[name][-1]:.2f} s", file=sys.stderr)
    print("\nseconds to 97.5 % on MNIST, 784-512-512-10, fused Adam 1e-3, batch 128")
    for name, seconds in found.items():
        ratio = statistics.mean(seconds) / statistics.mean(found["plain, 2 threads"])
        each = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"{name:28s} mean {statistics.mean(seconds):6.2f}   {ratio:5.2f} × plain   ({each})")
    return found


def rings(messages: int) -> dict[str, float]:
    """Messages per second of the bare engine."""
    found = {}
    print("\nbare engine, messages per second")
    for workers in (1, 2):
        for actors in (3, 100):
            rates = [ring.messages_per_s(actors, workers, messages) for _ in range(3)]
            found[f"{actors} actors, {workers} workers"] = statistics.median(rates)
            print(f"{actors:4d} actors, {workers} workers {statistics.median(rates):12,.0f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a minute's look: fewer samples, rounds and seeds"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("AKKORDEON_DATA"), help="folder of MNIST"
    )
    parser.add_argument("--only", choices=["throughput", "race", "ring"], help="one part alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="sgd", help="of the throughput")
    given = parser.parse_args()
    python, cores = platform.python_version(), os.cpu_count()
    machine = f"{platform.machine()}, {cores} cores, Python {python}, torch {torch.__version__}"
    print(machine)
    report: dict[str, Any] = {"machine": machine}
    if given.only in (None, "ring"):
        report["ring"] = rings(30_000 if given.quick else 300_000)
    if given.only in (None, "throughput"):
        settings = SETTINGS[:4] if given.quick else SETTINGS
        samples, rounds, epochs = (12_288, 1, 1) if given.quick else (60_000, given.rounds, 2)
        report["throughput"] = throughput(rounds, epochs, samples, settings, given.optimizer)
        report |= {"optimizer": given.optimizer, "planned": layouts(settings, given.optimizer)}
        print_throughput(report["throughput"])
    if given.only in (None, "race"):
        if given.data_dir is None:
            print("\nno race: it needs MNIST; give --data-dir or set AKKORDEON_DATA")
        else:
            folder = Path(given.data_dir)
            report["race"] = races(
                folder / "mnist" if (folder / "mnist").is_dir() else folder, 1 if given.quick else 5
            )
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
