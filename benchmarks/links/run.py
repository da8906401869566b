"""Three machines joined by slow links: DDP, 1F1B, DiLoCo over gloo; ours on Ray, as a row and as Downpour.

python benchmarks/links/run.py [--links 1000,100,20] [--only "ROW;…"] [--seconds 15] [--quick] [--json FILE]
python benchmarks/links/run.py --race --data-dir DIR --links 100 --seconds 30 [--slow]

The machines are network namespaces of this one (this needs root). What a machine sends and what it is sent
is held to the link's rate by a token bucket each, so all that a machine talks to share its link. Each has a
part of a core, in a control group, so that none waits for another. Everybody trains 784-512-512-10 on
batches of 128, or, with --model gpt, the GPT of the examples with 4.2 million weights on 16 x 64 characters;
with fused Adam, and one intra-op thread a process. The load is the mean number of processes that wanted a
core in the last minute: where it is above the cores, a figure says little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from commands import Command
from machines import Machines

HERE = Path(__file__).parent
MACHINES = Machines("aklink", "10.79.0")
GROUPS = [Path("/sys/fs/cgroup/cpu") / name for name in MACHINES.names]  # control groups of version 1
SLICE_US = 5_000
GLOO_PORT, RAY_PORT = 29_400, 25_640
PATIENCE_S = 600.0
MESSAGE_BYTES = (1_024, 1_048_576)
"""Of messages whose cost is measured."""

KNOWN_S = 5.0
"""Of each measurement of the machines."""

UNLIMITED_MBIT_PER_S = 10_000.0
HEAD = """
import sys
from akkordeon.engines.ray.cluster import processes
processes.start_head(sys.argv[1])
print("the head runs")
"""

GOAL = 0.97
HEADER = "| Mbit/s | | load | a second | simulated | off |", "|---:|---|---:|---:|---:|---:|"
RACE_HEADER = "| | load | seconds to 97 % | best |", "|---|---:|---:|---:|"

Job = dict[str, Any]
Row = dict[str, Any]

ALONE = ("plain", "1f1b")
"""Peers that no race is for: of the one each machine has its own model, of the other a part."""

BOTH_WAYS = {"compression": "int8", "fetch_compression": "int8"}

CONTENDERS: dict[str, Job] = {
    "plain loops, nothing sent": {"peer": "plain"},
    "DDP": {"peer": "ddp"},
    "1F1B, 4 micro-batches": {"peer": "1f1b", "micro_batches": 4},
    "1F1B, 16 micro-batches": {"peer": "1f1b", "micro_batches": 16},
    "row, 3 in flight": {"in_flight": 3},
    "row, 8 in flight": {"in_flight": 8},
    "row, 8 in flight, bf16": {"in_flight": 8, "wire": "bfloat16"},
    "Downpour, push_every 1": {"push_every": 1, "compression": None},
    "Downpour, push_every 16": {"push_every": 16, "compression": None},
    "Downpour, push_every 64": {"push_every": 64, "compression": None},
    "Downpour, push_every 64, bf16": {"push_every": 64, "compression": "bf16"},
    "Downpour, push_every 64, int8": {"push_every": 64, "compression": "int8"},
    "Downpour, push_every 64, int8 both ways": {"push_every": 64, **BOTH_WAYS},
    "Downpour, push_every 32, int8 both ways, outer SGD": {"push_every": 32, "outer_lr": 0.35, **BOTH_WAYS},
    "DiLoCo, 16 local steps": {"peer": "diloco", "local_steps": 16},
    "DiLoCo, 64 local steps": {"peer": "diloco", "local_steps": 64},
}


def hold(shares: list[float]) -> None:
    """Give each machine so much of a core's time, in slices so short that nobody notices."""
    for group, share in zip(GROUPS, shares, strict=True):
        group.mkdir(exist_ok=True)
        (group / "cpu.cfs_quota_us").write_text("-1")
        (group / "cpu.cfs_period_us").write_text(str(SLICE_US))
        (group / "cpu.cfs_quota_us").write_text(str(round(share * SLICE_US)))


def limit(mbit_per_s: float) -> None:
    """Hold what each machine sends, and what it is sent, to a rate."""
    bytes_per_ms = mbit_per_s * 125
    how = ("root", "tbf", "rate", f"{mbit_per_s:g}mbit", "burst", f"{max(16_000, 2 * bytes_per_ms):.0f}",
           "latency", "50ms")  # fmt: skip
    for i, name in enumerate(MACHINES.names):
        subprocess.run(["tc", "qdisc", "replace", "dev", MACHINES.link(i), *how], check=True)
        subprocess.run(["tc", "-n", name, "qdisc", "replace", "dev", "eth0", *how], check=True)


class Cluster:
    """The machines, and Ray on them once somebody asks for it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._token = {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._port = GLOO_PORT
        self._has_ray = False
        self._known: dict[str, Any] = {}

    def _command(self, machine: int, *words: str) -> Command:
        own = {"GLOO_SOCKET_IFNAME": "eth0", **self._token}
        home, group = self._home / str(machine), GROUPS[machine]
        return Command(home, MACHINES.names[machine], *words, group=group, **own)

    def measure(self, jobs: list[Job]) -> Iterator[dict[str, Any]]:
        """Have the machines do one job after the other; what the first machine says of each."""
        if "peer" in jobs[0]:
            self._port += 1
            at, words = f"{MACHINES.address(0)}:{self._port}", json.dumps(jobs)
            commands = [self._command(i, str(HERE / "gloo.py"), str(i), at, words) for i in range(3)]
        else:
            addresses = [MACHINES.address(i) for i in range(3)]
            words = json.dumps([job | {"addresses": addresses} for job in jobs])
            commands = [self._command(0, str(HERE / "ours.py"), self._ray(), words)]
        try:
            for job in jobs:
                told = re.escape(json.dumps({"name": job["name"]})[:-1])
                yield json.loads(commands[0].until(f"^{told}.*", PATIENCE_S).group(0))
        finally:
            for command in commands:
                command.end(30.0)

    def _ray(self) -> str:
        """The address of the head of a cluster of all machines."""
        at = f"{MACHINES.address(0)}:{RAY_PORT}"
        if not self._has_ray:
            self._command(0, "-c", HEAD, at).until("the head runs", PATIENCE_S)
            members = [self._command(i, "-m", "akkordeon.cli.main", "join", at) for i in (1, 2)]
            for member in members:
                member.until("is part of the cluster", PATIENCE_S)
            self._has_ray = True
        return at

    def known(self, job: Job) -> dict[str, Any]:
        """What the machines come to, with Ray on them, over links without limit.

        Batches a second of a row that does nothing, by the bytes of a batch, and samples, or tokens, a second
        of plain loops on all of them at once.
        """
        if not self._known:
            limit(UNLIMITED_MBIT_PER_S)
            common = {"seconds": KNOWN_S, "shares": job["shares"]}
            row = common | {"in_flight": 8}
            rows = [row | {"name": f"{nbytes:,} bytes", "bytes": nbytes} for nbytes in MESSAGE_BYTES]
            messages = [said["units_per_s"] for said in self.measure(rows)]
            loops = common | {"name": "plain loops", "peer": "plain", "model": job["model"]}
            (plain,) = self.measure([loops])
            self._known = {
                "messages_per_s": dict(zip(MESSAGE_BYTES, messages, strict=True)),
                "plain_per_s": plain["units_per_s"],
            }
            print(f"the machines: {self._known}", file=sys.stderr, flush=True)
        return self._known


def beside(places: dict[str, str]) -> list[int]:
    """For each shard the replica that is on the same machine; Ray places them."""
    replicas = {node: int(who.split("/")[1]) for who, node in places.items() if who.startswith("replica/")}
    return [replicas[node] for who, node in sorted(places.items()) if who.startswith("shard/")]


def predictions(mbit_per_s: float, jobs: list[Job], known: dict[str, Any]) -> dict[str, float]:
    """Samples, or tokens, per second by name, as the simulator has them."""
    jobs = [job | {"addresses": [MACHINES.address(i) for i in range(3)]} for job in jobs]
    words = [sys.executable, str(HERE / "prediction.py"), f"{mbit_per_s:g}", json.dumps(jobs)]
    words.append(json.dumps(known))
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE).stdout
    return {told["name"]: told["units_per_s"] for told in map(json.loads, said.splitlines())}


def in_groups(jobs: list[Job]) -> list[list[Job]]:
    """Peers, which are to have the machines to themselves, before Ray is on them for ours."""
    groups = [[job for job in jobs if ("peer" in job) == is_peer] for is_peer in (True, False)]
    return [group for group in groups if group]


def study(mbit_per_s: float, jobs: list[Job], cluster: Cluster) -> Iterator[Row]:
    """Everybody of a group in turn, beside what the simulator says of ours."""
    hold(jobs[0]["shares"])
    known = None if "peer" in jobs[0] else cluster.known(jobs[0])
    limit(mbit_per_s)
    rows: list[Row] = []
    for said in cluster.measure(jobs):
        rows.append({"link": mbit_per_s, **said, "load": os.getloadavg()[0]})
        print(f"{said['name']}: {said['units_per_s']:,.0f}", file=sys.stderr, flush=True)
    predicted: dict[str, float] = {}
    if known is not None:
        placed = [job | {"shards": beside(row["places"])} for job, row in zip(jobs, rows, strict=True)]
        predicted = predictions(mbit_per_s, placed, known)
    for row in rows:
        yield row | {"predicted_per_s": predicted.get(row["name"])}


def races(jobs: list[Job], cluster: Cluster) -> Iterator[Row]:
    """Everybody in turn, from each seed: seconds until the test images are right so often."""
    hold(jobs[0]["shares"])
    for group in in_groups(jobs):
        for job, said in zip(group, cluster.measure(group), strict=True):
            reached = next((at_s for at_s, right in said["curve"] if right >= GOAL), None)
            yield {"seed": job["seed"], **said, "seconds": reached, "load": os.getloadavg()[0]}


def in_words(row: Row) -> str:
    name = row["name"] + ("" if row.get("pushed", True) else ": too short for a push")
    cells = f"{row['link']:>6g} | {name:32} | {row['load']:>4.0f} | {row['units_per_s']:>12,.0f}"
    if row["predicted_per_s"] is None:
        return f"| {cells} | {'':>12} | {'':>6} |"
    off = row["predicted_per_s"] / row["units_per_s"] - 1
    return f"| {cells} | {row['predicted_per_s']:>12,.0f} | {off:>+6.0%} |"


def race_in_words(row: Row) -> str:
    took = "never" if row["seconds"] is None else f"{row['seconds']:.1f}"
    best = max(right for _, right in row["curve"])
    return f"| {row['name']:40} | {row['load']:>4.0f} | {took:>8} | {best:.2%} |"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", default="1000,100,20", help="rates in Mbit/s")
    parser.add_argument("--only", default="", help="those whose names begin so, as in 'DDP;row'")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement, at least")
    parser.add_argument("--share", type=float, default=0.6, help="of a core, that each machine has")
    parser.add_argument("--model", choices=["mlp", "gpt"], default="mlp", help="samples a second, or tokens")
    parser.add_argument("--slow", action="store_true", help="the third machine has half of that")
    parser.add_argument("--race", action="store_true", help="to 97 percent on MNIST, over the first link")
    parser.add_argument("--seeds", type=int, default=3, help="of a race")
    parser.add_argument("--data-dir", type=Path, help="the files of MNIST, for a race")
    parser.add_argument("--quick", action="store_true", help="100 Mbit/s alone, five seconds each")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.links, given.seconds, given.seeds = "100", 5.0, 1
    if given.race and given.data_dir is None:
        parser.error("--race needs --data-dir")
    if given.race and given.model == "gpt":
        parser.error("--race is of digits, which --model gpt does not read")
    if given.slow and not given.race:
        parser.error("--slow is for a --race: what is simulated has machines that are alike")
    return given


def jobs_of(given: argparse.Namespace) -> list[Job]:
    begins = tuple(given.only.split(";"))
    shares = [given.share, given.share, given.share / (2 if given.slow else 1)]
    common = {"seconds": given.seconds, "shares": shares, "model": given.model}
    chosen = {name: job for name, job in CONTENDERS.items() if name.startswith(begins)}
    jobs = [job | {"name": name} | common for name, job in chosen.items()]
    if not given.race:
        return jobs
    data = str(given.data_dir.resolve())
    jobs = [job for job in jobs if job.get("peer") not in ALONE]
    return [
        job | {"name": f"{job['name']}, seed {seed}", "data": data, "seed": seed}
        for seed in range(given.seeds)
        for job in jobs
    ]


def main() -> None:
    given = options()
    jobs, links = jobs_of(given), [float(link) for link in given.links.split(",")]
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    print(machine, *(RACE_HEADER if given.race else HEADER), sep="\n", flush=True)
    rows: list[Row] = []
    Path("/tmp/ray").mkdir(exist_ok=True)  # where each machine sees its own
    with tempfile.TemporaryDirectory(prefix="aklink") as home, MACHINES.up():
        cluster = Cluster(Path(home))
        if given.race:
            limit(links[0])
            for row in races(jobs, cluster):
                rows.append(row)
                print(race_in_words(row), flush=True)
        for group, mbit_per_s in [] if given.race else product(in_groups(jobs), links):
            for row in study(mbit_per_s, group, cluster):
                rows.append(row)
                print(in_words(row), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
