"""What is left of the throughput when a gate dies every minute: it comes back alone, or the run is restarted.

python benchmarks/recovery/run.py [--simulated S] [--threads S] [--ray S] [--json FILE]

Goodput is batches per second that are in the weights of all gates at the end. Of ours, all updates between
two snapshots count as lost with every gate that dies, for the whole row. Whoever stops and restarts goes on
from the latest checkpoint, with the session's own checkpoints and ``run(resume=…)``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import akkordeon as ak
from akkordeon.core.reports import GateRestarted
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.faults import Crash
from akkordeon.session.recovery.checkpoint import Checkpoint

DIES_EVERY_S = 60.0
SNAPSHOT_EVERY = 20
"""Updates."""

Run = dict[str, Any]


class Deaths:
    """When the next one is, in a file, for all processes; on the clock that they have in common."""

    def __init__(self, folder: str, die: Callable[[], None]) -> None:
        self._file = Path(folder) / "next_s"
        self._die = die
        self.set(math.inf)

    def set(self, in_s: float) -> None:
        """The first is so much later."""
        self._file.write_text(str(time.monotonic() + in_s), encoding="utf-8")

    def check(self) -> None:
        """Die if it is time, and not again before the next."""
        next_s = float(self._file.read_text(encoding="utf-8"))
        if time.monotonic() >= next_s:
            self._file.write_text(str(next_s + DIES_EVERY_S), encoding="utf-8")
            self._die()


def fail() -> None:
    """What a module does whose gate is to fail."""
    raise RuntimeError("its time has come")


def kill() -> None:
    """What one does whose process is to be lost."""
    os.kill(os.getpid(), signal.SIGKILL)


class Dies(nn.Module):
    """Looks in each backward whether it is time."""

    def __init__(self, deaths: Deaths) -> None:
        super().__init__()
        self._deaths = deaths

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.view_as(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: self._deaths.check())
        return y


@dataclass(frozen=True)
class Case:
    """What is trained, and on what.

    Attributes:
        make: the engine.
        seconds: on its clock.
        gates: in the row, each width-width.
        samples: of a batch.
    """

    make: Callable[[], Any]
    seconds: float
    gates: int
    width: int
    samples: int
    in_flight: int
    deaths: Deaths | None = None

    def network(self, recovery: ak.Recovery | None) -> ak.Network:
        """A row of equal gates, of which that in the middle dies, if one does."""
        torch.manual_seed(0)

        def gate(i: int) -> ak.Gate:
            dies = self.deaths is not None and i == self.gates // 2
            middle: list[nn.Module] = [Dies(self.deaths)] if dies else []  # type: ignore[arg-type]
            layers = nn.Sequential(*middle, nn.Linear(self.width, self.width), nn.Tanh())
            return ak.Gate(layers, lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))

        return ak.Network([gate(i) for i in range(self.gates)], recovery=recovery)

    def training(self) -> ak.Sentinel:
        """It never comes to its end."""
        x = torch.randn(64 * self.samples, self.width)
        source = ak.Batches(x, torch.randint(self.width, (len(x),)), self.samples)
        loss, in_flight = nn.CrossEntropyLoss(), self.in_flight
        return ak.Sentinel.train(source, loss, epochs=10**6, in_flight=in_flight, name="tdp")


def coming_back(case: Case) -> Run:
    """Gates come back alone."""
    restarts: list[GateRestarted] = []
    recovery = ak.Recovery(snapshot_every=SNAPSHOT_EVERY, restarts=10**6)
    with ak.run(case.network(recovery), case.make()) as session:
        session.subscribe(lambda r: restarts.append(r) if isinstance(r, GateRestarted) else None, inline=True)
        tdp = session.attach(case.training())
        wait(session, case.seconds)
        trained, lost = tdp.batches.trained, tdp.batches.lost
        tdp.detach(drop=True)
    kept = trained - SNAPSHOT_EVERY * len(restarts)
    return {"batches_per_s": kept / case.seconds, "deaths": len(restarts), "lost": lost}


def restarting(case: Case, *, checkpoint_every_s: float, restart_s: float) -> Run:
    """A death ends the run, which is taken up from its latest checkpoint so much later."""
    latest: list[Checkpoint] = []
    left_s, deaths, kept = case.seconds, 0, 0
    while left_s > 0:
        engine = case.make()
        began_s = engine.now_s()
        with ak.run(case.network(None), engine, resume=latest[-1] if latest else None) as session:
            session.subscribe(lambda r: latest.append(r) if isinstance(r, Checkpoint) else None, inline=True)
            keeper = ak.Sentinel.checkpoint(every_s=checkpoint_every_s, name="keeper")
            tdp, _ = session.attach_all([case.training(), keeper])
            try:
                wait(session, left_s - (engine.now_s() - began_s if deaths else 0.0))
                kept = tdp.batches.trained
                break
            except ak.errors.GateFailedError:
                left_s -= engine.now_s() - began_s + restart_s
                deaths += 1
                kept = _trained_of(latest)
    return {"batches_per_s": kept / case.seconds, "deaths": deaths}


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

    def world(*faults: Crash) -> Case:
        def make() -> ak.Simulator:
            return ak.Simulator(next(seeds), compute=Compute({"gate/*": cost}), faults=faults)

        return Case(make, seconds, gates=8, width=2, samples=1, in_flight=16)

    dying = world(Crash(who="gate/*", every_s=DIES_EVERY_S, back_after_s=2.0))
    found = {"undisturbed": coming_back(world()), "coming back": coming_back(dying)}
    for every_s, restart_s in ((10, 5), (30, 5), (30, 30), (60, 30)):
        how = f"restarted in {restart_s} s, checkpoint every {every_s} s"
        found[how] = restarting(dying, checkpoint_every_s=every_s, restart_s=restart_s)
    return found


def real(case: Case) -> dict[str, Run]:
    """A restart takes as long as a process that imports all, and what the engine needs to begin."""
    assert case.deaths is not None
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import akkordeon"], check=True)
    import_s = time.monotonic() - began_s
    found = {"undisturbed": coming_back(case)}
    case.deaths.set(DIES_EVERY_S / 2)
    found["coming back"] = coming_back(case)
    case.deaths.set(DIES_EVERY_S / 2)
    how = f"restarted in {import_s:.1f} s, checkpoint every 10 s"
    found[how] = restarting(case, checkpoint_every_s=10, restart_s=import_s)
    return found


def on_threads(seconds: float) -> dict[str, Run]:
    """Eight gates 256-256 on two workers; a module raises."""
    with tempfile.TemporaryDirectory() as folder:
        deaths = Deaths(folder, fail)
        return real(Case(lambda: ak.Threads(2), seconds, 8, 256, 128, 8, deaths))


def on_ray(seconds: float) -> dict[str, Run]:
    """Four gates 256-256, each in a process of its own, of which one is killed."""
    import ray

    with tempfile.TemporaryDirectory() as folder, ray.init("local", num_cpus=8, log_to_driver=False):
        return real(Case(ak.Ray, seconds, 4, 256, 128, 8, Deaths(folder, kill)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", type=float, default=1200.0, help="virtual seconds")
    parser.add_argument("--threads", type=float, default=180.0, help="seconds")
    parser.add_argument("--ray", type=float, default=180.0, help="seconds")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    if arguments.simulated:
        found["simulated"] = simulated(arguments.simulated)
    if arguments.threads:
        found["threads"] = on_threads(arguments.threads)
    if arguments.ray:
        found["ray"] = on_ray(arguments.ray)
    for where, runs in found.items():
        best = runs["undisturbed"]["batches_per_s"]
        for how, run in runs.items():
            share = run["batches_per_s"] / best
            print(f"{where:<10} {how:<42} {run['batches_per_s']:8.2f} batches/s {share:6.1%}  {run}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
