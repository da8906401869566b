"""A Downpour on the machines of a cluster; every so often the process of a shard or a replica is killed.

Trainers die with the process of their replica, and are begun again where they were when that is there again.
Ends with a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from random import Random
from typing import Any

import ray
import torch
from network import row

import akkordeon as ak
from akkordeon.core.errors import ClusterError
from akkordeon.engines.ray.engine import SESSION_HOST
from akkordeon.experiments.tasks.loader import load_task

GIVEN_UP_S = 120.0

Progress = dict[str, int]


def progress(session: ak.Session, trainers: Any) -> Progress:
    """How far every shard and every trainer is."""
    counts = {member.name: member.batches.trained for member in trainers}
    return counts | {shard.address: shard.version for shard in session.status().gates}


def until_all_learn_s(session: ak.Session, trainers: Any) -> float:
    """Seconds until every shard and every trainer is further than it was when first seen, from now."""
    began_s, first = time.monotonic(), {}
    while time.monotonic() < began_s + GIVEN_UP_S:
        if trainers.errors:
            first = {}
            with suppress(ClusterError):  # its replica is not there yet
                trainers.restart()
        for name, count in (now := progress(session, trainers)).items():
            first.setdefault(name, count)
        if not trainers.errors and all(now[name] > first[name] for name in now):
            return time.monotonic() - began_s
        time.sleep(0.1)
    raise SystemExit(f"not everybody learns again: {first} {session.status(timeout=10)}")


def kill(session: ak.Session, whose: str, rng: Random) -> str:
    """Kill the process of one of them; whom it held."""
    pool = session._engine._pool  # type: ignore[attr-defined]  # of the engine on Ray
    addresses = sorted(a for a, host in pool.places.items() if a.startswith(whose) and host != SESSION_HOST)
    host = pool.places[rng.choice(addresses)]
    _, pid = ray.get(pool.hosts[host].location.remote())
    os.kill(pid, signal.SIGKILL)
    return ", ".join(sorted(a for a, there in pool.places.items() if there == host))


def main() -> None:
    at, data_dir, minutes, every_s, seed, replicas = sys.argv[1:]
    torch.manual_seed(0)
    task, rng = load_task("mnist", data_dir), Random(int(seed))
    took_s = defaultdict(list)
    with ak.run(ak.Downpour(row(), replicas=int(replicas), push_every=2), ak.Ray(at)) as session:
        training = ak.Sentinel.train(task.train_batches(), task.loss, in_flight=3, epochs=10**6, name="t")
        trainers = session.attach(training)
        until_all_learn_s(session, trainers)
        began_s = time.monotonic()
        while time.monotonic() < began_s + 60 * float(minutes):
            fault_s, whose = time.monotonic(), rng.choice(["shard/", "replica/"])
            killed = kill(session, whose, rng)
            took_s[whose[:-1]].append(until_all_learn_s(session, trainers))
            print(f"  {whose[:-1]:9} {killed:60} {took_s[whose[:-1]][-1]:.1f} s", flush=True)
            time.sleep(max(0.0, fault_s + float(every_s) - time.monotonic()))
        trainers.detach()
        trainers.wait(GIVEN_UP_S)
        account = trainers.batches.as_tuple()
        tester = session.attach(ak.Sentinel.test(task.validate, task.loss, scores=task.scores))
        accuracy = float(tester.wait(GIVEN_UP_S).rounds[-1].scores["accuracy"])
    print(json.dumps({"accuracy": accuracy, "account": account, "took_s": took_s}), flush=True)


main()
