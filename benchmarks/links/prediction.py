"""What the simulator says of ours: the same network and batches, links of that rate, costs measured here.

python benchmarks/links/prediction.py MBIT_PER_S JOBS KNOWN    # prints a line of JSON for each job

KNOWN is what the machines came to: messages_per_s, batches a second of a row that does nothing, by their
bytes, see :func:`cost_of`; and plain_per_s, samples or tokens a second of plain loops on all of them, see
:func:`speed_of`. All else is measured on this machine while it is idle, as it is with a whole core: gates and
sentinels one at a time, shards and pushes by the planner. A job of replicas names the replica that each of
its shards is on a machine with.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from gloo import plain
from ours import MACHINES, Job, Rates, network_of, training_of
from work import Work, adam, measured, work_of

import akkordeon as ak
from akkordeon.engines.simulator import Compute, Cost, Host, Link, Slowdown
from akkordeon.experiments.planning.costs import COMPRESSIONS, ModelCosts
from akkordeon.experiments.schedules.measure_costs import measure_costs

LATENCY_S = 0.0002  # between two namespaces
INSIDE_S = 0.0001  # of a message between actors of one process
SHARE = 1448 / 1514  # of what is sent on Ethernet, the rest is headers
ALONE_S = 3.0  # of the plain loop with a core to itself
Table = Mapping[str, tuple[float, float]]


def speed_of(job: Job, plain_per_s: float) -> float:
    """How much of a whole, idle core a machine comes to while all are at work: of its plain loop's speed."""
    alone = plain(0, job)
    return measured(alone.step, ALONE_S, float) * plain_per_s / (alone.samples * work_of(job).units)


def cost_of(rates: Mapping[str, float], speed: float) -> ak.MessageCost:
    """What a message costs, from batches a second of a row of gates that do nothing, by their bytes.

    The first machine has most to do, its gate and the sentinel, at this part of a core's speed: eight ends of
    messages for a batch, of which six are as large as the batch. What these do themselves is in it.
    """
    (_, small_s), (nbytes, large_s) = sorted((int(nbytes), speed / rate) for nbytes, rate in rates.items())
    message_s = small_s / 8
    return ak.MessageCost(ms=1e3 * message_s, ms_per_mb=1e9 * (large_s - 2 * message_s) / 6 / nbytes)


class Costs:
    """Of gates, wherever they are, of sentinels, and of shards.

    Args:
        work: that is done.
        message: from process to process.
    """

    def __init__(self, work: Work, message: ak.MessageCost) -> None:
        self._message = message
        network = ak.Network([ak.Gate(part, adam) for part in work.parts(0)])
        batches = work.batches()[:15]
        (x, y), here = batches[0], ak.Machines.here(os.cpu_count())
        self._model: ModelCosts = ak.plan(
            network, example=x, targets=y, loss=work.loss, hosts=here, compressions=COMPRESSIONS
        ).costs
        found = measure_costs(network, batches, work.loss, message_s=INSIDE_S)
        self._tables = {who: cost.table for who, cost in found.items()}

    def of(self, job: Job) -> dict[str, Cost]:
        """By address."""
        tables = self._row(job) if "in_flight" in job else self._replicas(job)
        return {who: Cost(table=table) for who, table in tables.items()}

    def _row(self, job: Job) -> dict[str, Table]:
        """Every forward and backward goes from one process to another."""
        blocks, narrow = self._model.blocks, 2 if job.get("wire") == "bfloat16" else 1
        sizes = [sent.bytes / narrow for sent in (self._model.inputs, *(block.output for block in blocks))]
        tables, ends_s = dict(self._tables), self._message.ends_s
        for i, (before, after) in enumerate(pairwise(sizes)):
            more = {"Forward": (ends_s(before, after), 0.0)}
            more["Backward"] = (ends_s(after, before if i else 0), 0.0)
            tables[f"gate/{i}"] = _sum(tables[f"gate/{i}"], more)
        more = {"Forward": (ends_s(sizes[-1], sizes[-1]), 0.0), "Backward": (ends_s(0, sizes[0]), 0.0)}
        return tables | {"sentinel/*": _sum(tables["sentinel/*"], more)}

    def _replicas(self, job: Job) -> dict[str, Table]:
        """Pushes, and the weights that come back, go from one process to another, all else stays inside."""
        tables, ends_s = {}, self._message.ends_s
        for i, block in enumerate(self._model.blocks):
            push = block.push(job["compression"])
            fetched, packing_s = block.weight_bytes, 0.0
            if job.get("fetch_compression"):
                packed = block.push(job["fetch_compression"])
                fetched, packing_s = packed.push_bytes, packed.push_s
            pushing_s = (push.push_s + ends_s(push.push_bytes)) / job["push_every"]
            more = {
                "Backward": (0.0, pushing_s),
                "Parameters": (push.fetch_s + ends_s(fetched), 0.0),
            }
            tables[f"replica/*/gate/{i}"] = _sum(self._tables[f"gate/{i}"], more)
            applying_s = push.apply_s + packing_s + ends_s(push.push_bytes, fetched)
            tables[f"shard/{i}"] = {"Push": (applying_s, 0.0), "Fetch": (ends_s(0), 0.0)}
        return tables | {who: self._tables[who] for who in ("sentinel/*", "reader/*")}


def _sum(table: Table, more: Table) -> Table:
    nothing = (0.0, 0.0)
    return {
        name: (
            table.get(name, nothing)[0] + more.get(name, nothing)[0],
            table.get(name, nothing)[1] + more.get(name, nothing)[1],
        )
        for name in table | more
    }


def actors(number: int, job: Job) -> list[str]:
    """Of a machine: a gate of the row, the sentinel on the first; or a replica, its sentinel, shards."""
    if "in_flight" in job:
        return [f"gate/{number}", *(["sentinel/*", "reader/*"] if number == 0 else [])]
    its = [f"{kind}/*-{number}#*" for kind in ("sentinel", "reader")]
    shards = [f"shard/{i}" for i, at in enumerate(job["shards"]) if at == number]
    return [f"replica/{number}/*", *its, *shards]


def machine(number: int, job: Job, bytes_per_s: float) -> Host:
    """One of its processes is at work at a time; whatever else there is, is on the first."""
    rest = ["sentinel/*", "reader/*"] if number == 0 else []
    return Host(f"machine {number}", [*actors(number, job), *rest], cores=1, bytes_per_s=bytes_per_s)


def predicted(job: Job, mbit_per_s: float, costs: Costs, speed: float) -> dict[str, Any]:
    """The rate in virtual time, the first machine at that part of a core's speed, others by their shares."""
    bytes_per_s = mbit_per_s * 1e6 / 8 * SHARE
    hosts = [machine(i, job, bytes_per_s) for i in reversed(range(MACHINES))]
    slowness = [job["shares"][0] / share / speed for share in job["shares"]]
    slower = [Slowdown(who, factor) for i, factor in enumerate(slowness) for who in actors(i, job)]
    compute = Compute(costs.of(job), slowdowns=slower)
    narrow = torch.bfloat16 if job.get("wire") == "bfloat16" else None
    engine = ak.Simulator(links=Link(LATENCY_S), hosts=hosts, compute=compute, wire_dtype=narrow)
    rates = Rates()
    with ak.run(network_of(job), engine) as session:
        session.subscribe(rates.take)
        session.attach(training_of(job))
        session.wait()
    return {"name": job["name"], "units_per_s": rates.samples_per_s() * work_of(job).units}


def main() -> None:
    mbit_per_s, jobs, known = float(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    speed = speed_of(jobs[0], known["plain_per_s"])
    costs = Costs(work_of(jobs[0]), cost_of(known["messages_per_s"], speed))
    for job in jobs:
        print(json.dumps(predicted(job, mbit_per_s, costs, speed)), flush=True)


if __name__ == "__main__":
    main()
