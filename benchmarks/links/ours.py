"""Ours on Ray over the three machines: a row of gates, or a Downpour.

python benchmarks/links/ours.py HOST:PORT JOBS    # of Ray's head; prints a line of JSON for each job
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from work import adam, curve, digits, work_of

import akkordeon as ak
from akkordeon.core.errors import WaitTimeoutError
from akkordeon.core.reports import TrainingProgress

MACHINES = 3
REPORT_S = 1.0
KEPT_EVERY_S = 0.5

Job = dict[str, Any]


def row(parts: list[nn.Sequential], addresses: list[str]) -> ak.Network:
    """A gate on each machine."""
    needs = [{f"node:{address}": 0.01} for address in addresses]
    optimizers = [adam if any(True for _ in part.parameters()) else None for part in parts]
    made = zip(parts, optimizers, needs, strict=True)
    return ak.Network([ak.Gate(part, optimizer, resources=need) for part, optimizer, need in made])


def downpour(parts: list[nn.Sequential], job: Job) -> ak.Downpour:
    """A replica on each machine, which it takes the CPUs of; asynchronous DiLoCo, or plain outer steps."""
    first, *others = (ak.Gate(part, adam) for part in parts)
    outer: Any = partial(ak.DelayedNesterov, lr=0.7, momentum=0.5, buffer=MACHINES)
    if "outer_lr" in job:
        outer = partial(torch.optim.SGD, lr=job["outer_lr"])
    whole = replace(first, resources={"num_cpus": os.cpu_count() or 1})
    return ak.Downpour(
        ak.Network([whole, *others]),
        replicas=MACHINES,
        push="differences",
        push_every=job["push_every"],
        compression=job["compression"],
        fetch_compression=job.get("fetch_compression"),
        server_optimizer=outer,
    )


class Rates:
    """Samples per second of each sentinel by its own clock, without its first report if there are more."""

    def __init__(self) -> None:
        self._reports: dict[str, list[TrainingProgress]] = defaultdict(list)

    def take(self, record: Any) -> None:
        if isinstance(record, TrainingProgress):
            self._reports[record.sentinel].append(record)

    def steps(self) -> float:
        """Of the sentinel that came furthest."""
        return max(sum(r.batches for r in reports) for reports in self._reports.values())

    def samples_per_s(self) -> float:
        """Of all together."""
        later = [reports[1:] or reports for reports in self._reports.values()]
        return sum(sum(r.samples for r in kept) / sum(r.seconds for r in kept) for kept in later)


def network_of(job: Job) -> ak.Network | ak.Downpour:
    parts = work_of(job).parts(job.get("seed", 0))
    if "in_flight" in job:
        return row(parts, job["addresses"])
    return downpour(parts, job)


def training_of(job: Job) -> ak.Training:
    work = work_of(job)
    source: Any = work.batches()
    if "data" in job:
        (x, y), _ = digits(job["data"])
        source = ak.Batches(x, y, work.size, shuffle=True)
    return ak.Sentinel.train(
        source,
        work.loss,
        in_flight=job.get("in_flight", 1),
        seconds=job["seconds"],
        epochs=10**6 if "data" in job else 1,
        report_every=REPORT_S,
    )


def measure(at: str, job: Job) -> dict[str, Any]:
    """The rate, and the machine of every actor."""
    narrow = torch.bfloat16 if job.get("wire") == "bfloat16" else None
    engine, rates = ak.Ray(at, wire_dtype=narrow, workers=1), Rates()
    with ak.run(network_of(job), engine, seed=job.get("seed", 0)) as session:
        session.subscribe(rates.take)
        training = session.attach(training_of(job))
        if "data" in job:
            return {"curve": raced(session, training, job)}
        training.wait(300)
        places = {address: node for address, (node, _) in engine.locations().items()}
    pushed = rates.steps() >= job.get("push_every", 0)
    return {"units_per_s": rates.samples_per_s() * work_of(job).units, "places": places, "pushed": pushed}


def raced(session: ak.Session, training: ak.Attachment, job: Job) -> list[tuple[float, float]]:
    """Seconds and accuracy of the weights as they were about twice a second, which travel meanwhile."""
    kept: list[tuple[float, nn.Module]] = []
    began_s = time.perf_counter()
    while not training.ended:
        asked_s = time.perf_counter() - began_s
        kept.append((asked_s, session.module()))
        with suppress(WaitTimeoutError):
            training.wait(max(0.01, asked_s + KEPT_EVERY_S - (time.perf_counter() - began_s)))
    return curve(kept, digits(job["data"])[1])


def main() -> None:
    at, jobs = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    for job in jobs:
        print(json.dumps({"name": job["name"]} | measure(at, job)), flush=True)


if __name__ == "__main__":
    main()
