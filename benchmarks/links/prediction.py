"""What the simulator says of ours: the same network and batches, links of that rate, costs measured here.

python benchmarks/links/prediction.py MBIT_PER_S JOBS    # prints a line of JSON for each job
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from ours import MACHINES, Job, Rates, network_of, training_of
from work import Work, adam, work_of

import akkordeon as ak
from akkordeon.engines.simulator import Compute, Cost, Host, Link, Slowdown
from akkordeon.experiments.schedules.measure_costs import measure_costs

LATENCY_S = 0.0002  # between two namespaces
MESSAGE_S = 0.0005  # of a call of Ray's
SHARE = 1448 / 1514  # of what is sent on Ethernet, the rest is headers


def actors(number: int, job: Job) -> list[str]:
    """Of a machine: a gate of the row, the sentinel on the first; or a replica, its sentinel and shard."""
    if "in_flight" in job:
        return [f"gate/{number}", *(["sentinel/*"] if number == 0 else [])]
    return [f"replica/{number}/*", f"sentinel/*-{number}#*", f"shard/{number}"]


def machine(number: int, job: Job, bytes_per_s: float) -> Host:
    """Whatever else there is, is on the first."""
    rest = ["sentinel/*"] if number == 0 else []
    return Host(f"machine {number}", [*actors(number, job), *rest], bytes_per_s=bytes_per_s)


def costs(work: Work) -> dict[str, Cost]:
    """Of gates, wherever they are, and of sentinels."""
    network = ak.Network([ak.Gate(part, adam) for part in work.parts(0)])
    found = measure_costs(network, work.batches()[:15], work.loss, message_s=MESSAGE_S)
    return found | {f"replica/*/{name}": cost for name, cost in found.items() if name.startswith("gate/")}


def predicted(job: Job, mbit_per_s: float, costs: dict[str, Cost]) -> dict[str, Any]:
    """The rate in virtual time; sending bfloat16 is as sending float32 twice as fast."""
    narrow = 2 if job.get("wire") == "bfloat16" else 1
    bytes_per_s = mbit_per_s * 1e6 / 8 * SHARE * narrow
    hosts = [machine(i, job, bytes_per_s) for i in reversed(range(MACHINES))]
    slower = [Slowdown(w, 1 / share) for i, share in enumerate(job["shares"]) for w in actors(i, job)]
    compute = Compute(costs, slowdowns=slower)
    engine, rates = ak.Simulator(links=Link(LATENCY_S), hosts=hosts, compute=compute), Rates()
    with ak.run(network_of(job), engine) as session:
        session.subscribe(rates.take)
        session.attach(training_of(job))
        session.wait()
    return {"name": job["name"], "units_per_s": rates.samples_per_s() * work_of(job).units}


def main() -> None:
    mbit_per_s, jobs = float(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    measured = costs(work_of(jobs[0]))
    for job in jobs:
        print(json.dumps(predicted(job, mbit_per_s, measured)), flush=True)


if __name__ == "__main__":
    main()
