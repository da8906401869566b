"""What is left of the throughput when a gate dies every minute: it comes back alone, or the run is restarted.

python benchmarks/recovery/run.py [--simulated S] [--threads S] [--json FILE]

Goodput is batches per second that are in the weights of all gates at the end. Of ours, all updates between
two snapshots count as lost with every gate that dies, for the whole row. Whoever stops and restarts goes on
from the latest checkpoint, with the session's own checkpoints and ``run(resume=…)``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import akkordeon as ak
from akkordeon.core.reports import GateRestarted
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash
from akkordeon.session.recovery.checkpoint import Checkpoint

GATES, DIES_EVERY_S = 8, 60.0
SNAPSHOT_EVERY = 20
"""Updates."""

Run = dict[str, Any]


class Dies(nn.Module):
    """Raises in its backward when its time has come; the time is common to all."""

    next_s: ClassVar[float] = float("inf")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.view_as(x)
        if y.requires_grad:
            y.register_hook(self._check)
        return y

    @classmethod
    def _check(cls, gradient: torch.Tensor) -> torch.Tensor:
        if time.monotonic() >= cls.next_s:
            cls.next_s += DIES_EVERY_S
            raise RuntimeError("its time has come")
        return gradient


def network(width: int, recovery: ak.Recovery | None) -> ak.Network:
    """A row of equal gates."""
    torch.manual_seed(0)

    def gate(i: int) -> ak.Gate:
        middle: list[nn.Module] = [Dies()] if i == GATES // 2 else []
        layers = nn.Sequential(*middle, nn.Linear(width, width), nn.Tanh())
        return ak.Gate(layers, lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))

    return ak.Network([gate(i) for i in range(GATES)], recovery=recovery)


def training(width: int, samples: int, in_flight: int) -> ak.Sentinel:
    """It never comes to its end."""
    source = ak.Batches(torch.randn(64 * samples, width), torch.randint(width, (64 * samples,)), samples)
    return ak.Sentinel.train(source, nn.CrossEntropyLoss(), epochs=10**6, in_flight=in_flight, name="tdp")


def coming_back(make: Callable[[], Any], seconds: float, width: int, samples: int, in_flight: int) -> Run:
    """Gates come back alone."""
    restarts: list[GateRestarted] = []
    recovery = ak.Recovery(snapshot_every=SNAPSHOT_EVERY)
    with ak.run(network(width, recovery), make()) as session:
        session.subscribe(lambda r: restarts.append(r) if isinstance(r, GateRestarted) else None, inline=True)
        tdp = session.attach(training(width, samples, in_flight))
        wait(session, seconds)
        trained, lost = tdp.batches.trained, tdp.batches.lost
        tdp.detach(drop=True)
    kept = trained - SNAPSHOT_EVERY * len(restarts)
    return {"batches_per_s": kept / seconds, "deaths": len(restarts), "lost": lost}


def restarting(
    make: Callable[[], Any],
    seconds: float,
    width: int,
    samples: int,
    in_flight: int,
    *,
    checkpoint_every_s: float,
    restart_s: float,
) -> Run:
    """A death ends the run, which is taken up from its latest checkpoint so much later."""
    latest: list[Checkpoint] = []
    left_s, deaths, kept = seconds, 0, 0
    while left_s > 0:
        engine = make()
        with ak.run(network(width, None), engine, resume=latest[-1] if latest else None) as session:
            began_s = engine.now_s()
            session.subscribe(lambda r: latest.append(r) if isinstance(r, Checkpoint) else None, inline=True)
            keeper = ak.Sentinel.checkpoint(every_s=checkpoint_every_s, name="keeper")
            tdp, _ = session.attach_all([training(width, samples, in_flight), keeper])
            try:
                wait(session, left_s)
                kept = tdp.batches.trained
                break
            except ak.errors.GateFailedError:
                left_s -= engine.now_s() - began_s + restart_s
                deaths += 1
                kept = _trained_of(latest)
    return {"batches_per_s": kept / seconds, "deaths": deaths}


def _trained_of(latest: list[Checkpoint]) -> int:
    return int(latest[-1].sentinels["tdp"]["batches"][1]) if latest else 0


def wait(session: ak.Session, seconds: float) -> None:
    """Let it run so long."""
    try:
        session.wait(seconds)
    except ak.errors.WaitTimeoutError:
        return


def simulated(seconds: float) -> dict[str, Run]:
    """Eight gates of 0.14 s for each batch; a place is there again 2 s after its gate was lost."""
    cost, seeds = Cost(forward_s=0.04, backward_s=0.08, update_s=0.02), iter(range(1000))

    def world(*faults: Crash) -> Callable[[], ak.Simulator]:
        return lambda: ak.Simulator(next(seeds), compute=Compute({"gate/*": cost}), faults=faults)

    dying = world(Crash(who="gate/*", every_s=DIES_EVERY_S, back_after_s=2.0))
    size = 2, 1, 16
    found = {
        "undisturbed": coming_back(world(), seconds, *size),
        "coming back": coming_back(dying, seconds, *size),
    }
    for every_s, restart_s in ((10, 5), (30, 5), (30, 30), (60, 30)):
        found[f"restarted in {restart_s} s, checkpoint every {every_s} s"] = restarting(
            dying, seconds, *size, checkpoint_every_s=every_s, restart_s=restart_s
        )
    return found


def on_threads(seconds: float) -> dict[str, Run]:
    """Eight gates 256-256 on two workers; a restart takes as long as a process that imports all."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import akkordeon"], check=True)
    import_s = time.monotonic() - began_s

    def threads() -> ak.Threads:
        return ak.Threads(2)

    size = 256, 128, 8
    found = {"undisturbed": coming_back(threads, seconds, *size)}
    Dies.next_s = time.monotonic() + DIES_EVERY_S / 2
    found["coming back"] = coming_back(threads, seconds, *size)
    Dies.next_s = time.monotonic() + DIES_EVERY_S / 2
    found[f"restarted in {import_s:.1f} s, checkpoint every 10 s"] = restarting(
        threads, seconds, *size, checkpoint_every_s=10, restart_s=import_s
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", type=float, default=1200.0, help="virtual seconds")
    parser.add_argument("--threads", type=float, default=180.0, help="seconds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    if arguments.simulated:
        found["simulated"] = simulated(arguments.simulated)
    if arguments.threads:
        found["threads"] = on_threads(arguments.threads)
    for where, runs in found.items():
        best = runs["undisturbed"]["batches_per_s"]
        for how, run in runs.items():
            share = run["batches_per_s"] / best
            print(f"{where:<10} {how:<42} {run['batches_per_s']:8.2f} batches/s {share:6.1%}  {run}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
