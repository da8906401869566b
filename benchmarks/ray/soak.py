"""A network on Ray for half an hour: two trainers, one validator, a trainer killed and replaced throughout.

python benchmarks/ray/soak.py [--minutes 30] [--every 30] [--json FILE]

Ends with an error if batches are not accounted for, a gate holds a batch of the dead, or something hangs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch.nn.functional as F

import akkordeon as ak
from akkordeon.engines.ray import detached as networks
from akkordeon.engines.ray.cluster.connection import join
from akkordeon.experiments.tasks.named import digits

NAME = "soak"


def sentinel(address: str, name: str, done: Any) -> None:
    """A process of its own: attach, and stay until told to end by SIGTERM."""
    end: list[bool] = []
    task = digits()
    with ak.connect(f"{address}/{NAME}") as session:
        signal.signal(signal.SIGTERM, lambda *_: end.append(True))  # Ray sets one of its own when it joins
        if name == "validator":
            recipe: Any = ak.Sentinel.validate(
                task.validate, F.cross_entropy, scores=task.scores, every_s=5, name=name
            )
        else:
            recipe = ak.Sentinel.train(
                task.train_batches(), F.cross_entropy, in_flight=5, epochs=10**9, name=name
            )
        attached = session.attach(recipe)
        while not end:
            session._engine.wait_until(lambda: bool(end), 0.5)
        attached.detach()
        attached.wait(60)
        accuracy = [record.scores.get("accuracy") for record in attached.rounds[-1:]]
        done.put((name, attached.batches.as_tuple(), accuracy))


def victim_name(report: dict[str, Any]) -> str:
    return f"victim-{report['kills']}"


def wait_until_known(address: str, name: str) -> None:
    """Wait until a sentinel is at work; it may just have been begun."""
    for _ in range(60):
        if any(line.name == name and line.last for line in networks.status(address, NAME).sentinels):
            return
        time.sleep(1)


def begin(address: str, name: str, done: Any) -> mp.Process:
    process = mp.get_context("spawn").Process(target=sentinel, args=(address, name, done))
    process.start()
    return process


def memory_mb(root: int) -> dict[str, float]:
    """Resident memory without what is shared, of every process of this run, by what it is."""
    found: dict[str, float] = {}
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            words = process.cmdline()
            info = process.memory_info()
        except psutil.Error:
            continue
        if words:
            name = words[0].removeprefix("ray::") if words[0].startswith("ray::") else Path(words[0]).name
            found[f"{name} {process.pid}"] = round((info.rss - getattr(info, "shared", 0)) / 1e6, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two kills")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    leave = join(None)
    import ray

    address = ray.get_runtime_context().gcs_address
    os.environ["RAY_AUTH_MODE"] = "token"
    network = digits().network
    networks.start(NAME, network, network.spawns(0))
    done = mp.get_context("spawn").Queue()
    steady = begin(address, "steady", done)
    validator = begin(address, "validator", done)
    report: dict[str, Any] = {"kills": 0, "memory_mb": {}}
    began_s = time.monotonic()
    marks = [share * given.minutes for share in (1 / 6, 1 / 2)]  # minutes 5 and 15 of 30
    victim = begin(address, victim_name(report), done)
    while (passed_s := time.monotonic() - began_s) < given.minutes * 60:
        time.sleep(given.every)
        if victim.pid is not None:
            os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        report["kills"] += 1
        victim = begin(address, victim_name(report), done)
        if marks and passed_s >= marks[0] * 60:
            report["memory_mb"][f"{marks.pop(0):g} min"] = memory_mb(os.getpid())
        status = networks.status(address, NAME)
        versions = [line.status.version for line in status.gates if line.status]
        print(f"{passed_s:6.0f} s  {report['kills']} kills, versions {versions}", file=sys.stderr, flush=True)
    report["memory_mb"][f"{given.minutes:g} min"] = memory_mb(os.getpid())
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))
    wait_until_known(address, victim_name(report))
    for process in (victim, steady, validator):
        process.terminate()
    report["ended"] = [done.get(timeout=90) for _ in range(3)]
    time.sleep(6)  # two rounds of the registrar's questions to the gates
    status = networks.status(address, NAME)
    report["in flight"] = [line.status.stashed for line in status.gates if line.status]
    report["failure"] = status.failure
    networks.stop(address, NAME)
    leave()
    print(json.dumps(report, indent=1))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))
    counted = all(
        sent == trained + refused + lost for _, (sent, trained, refused, lost), _ in report["ended"]
    )
    sys.exit(0 if counted and not any(report["in flight"]) and report["failure"] is None else 1)


if __name__ == "__main__":
    main()
