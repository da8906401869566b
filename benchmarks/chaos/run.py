"""Three machines on which something is killed, or cut off, every twenty seconds, while MNIST is learned.

python benchmarks/chaos/run.py --data-dir DIR [--minutes 20] [--replicas-minutes 5] [--every 20] [--seed 0]
    [--quick] [--json FILE]

The machines are network namespaces of this one, each with a Ray of its own (this needs root). The head of
the cluster is left alone. Trainers that were killed are begun again after two seconds, and so is what joins a
machine to the cluster: by this program, as a service manager would.

Ends with the accuracy beside that of an undisturbed run of as many batches, with the accounts of all trainers
that could give one, and with how long it took until every gate learned again, by kind of fault. Then the
same of a Downpour on these machines, where processes of shards and of replicas are killed; see replicas.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from commands import Command, Service
from machines import Machines, ip

HERE = Path(__file__).parent
MACHINES = Machines("akkordeon", "10.77.0")
AT, NAME = f"{MACHINES.address(0)}:25620", "chaos"
CUT_S, GIVEN_UP_S = 10.0, 120.0
REPLICAS = 3
KINDS = ("gate", "sentinel", "home", "raylet", "link")
COUNTS = re.compile(r"([\d,]+) batches sent, ([\d,]+) trained, ([\d,]+) refused, ([\d,]+) lost")


# ── what is seen ─────────────────────────────────────────────────────────────────────────────────────


class Sight:
    """How the network is, by and by."""

    def __init__(self, watch: Command) -> None:
        self._watch = watch

    def since(self, at_s: float) -> list[dict[str, Any]]:
        """What was seen after a time."""
        seen = [json.loads(line) for line in list(self._watch.lines) if line.startswith("{")]
        return [one for one in seen if one["at_s"] > at_s and "gates" in one]

    def now(self) -> dict[str, Any]:
        """The latest of it."""
        deadline_s = time.monotonic() + GIVEN_UP_S
        while time.monotonic() < deadline_s:
            if found := self.since(time.monotonic() - 2.0):
                return found[-1]
            if self._watch.ended:
                raise SystemExit(f"nobody can see the network: {self._watch.lines[-10:]}")
            time.sleep(0.2)
        raise SystemExit("the network cannot be seen")


def learning_after_s(
    seen: list[dict[str, Any]], fault_s: float, lost: set[str], pids: dict[str, int]
) -> float | None:
    """Seconds from a fault until every gate had learned again, those that were lost in another process."""
    first: dict[str, int] = {}
    again: set[str] = set()
    for one in seen:
        for gate, (pid, _, version) in one["gates"].items():
            if version is None or (gate in lost and pid == pids[gate]):
                continue
            if gate in first and version > first[gate]:
                again.add(gate)
            first.setdefault(gate, version)
        if again >= pids.keys():
            return float(one["at_s"] - fault_s)
    return None


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Chaos:
    """Does one thing after another, and notes how long each took to be over."""

    rng: Random
    sight: Sight
    trainers: dict[str, Service]
    took_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    never: list[str] = field(default_factory=list)

    def do(self, kind: str, every_s: float) -> None:
        """One fault, then a while of watching."""
        before = self.sight.now()
        pids = {gate: pid for gate, (pid, _, _) in before["gates"].items()}
        fault_s = time.monotonic()
        what, lost = getattr(self, f"_{kind}")(before)
        took_s = None
        while time.monotonic() < fault_s + GIVEN_UP_S and took_s is None:
            time.sleep(0.25)
            took_s = learning_after_s(self.sight.since(fault_s), fault_s, lost, pids)
        if took_s is None:
            latest = self.sight.now()
            self.never.append(f"{what}: {latest['failure']}; {latest['events']}")
        else:
            self.took_s[kind].append(took_s)
        shown = "never" if took_s is None else f"{took_s:.1f} s"
        print(f"  {kind:9} {what:60} {shown}", flush=True)
        time.sleep(max(0.0, fault_s + every_s - time.monotonic()))

    def _gate(self, seen: dict[str, Any]) -> tuple[str, set[str]]:
        gate = self.rng.choice(sorted(seen["gates"]))
        pid = seen["gates"][gate][0]
        os.kill(pid, signal.SIGKILL)
        return f"the process of {gate}", {g for g, (p, _, _) in seen["gates"].items() if p == pid}

    def _sentinel(self, seen: dict[str, Any]) -> tuple[str, set[str]]:
        name = self.rng.choice(sorted(self.trainers))
        self.trainers[name].now.signal(signal.SIGKILL)
        return f"the command of {name}", set()

    def _home(self, seen: dict[str, Any]) -> tuple[str, set[str]]:
        known = sorted(name for name in seen["sentinels"] if name.split(":")[0] in self.trainers)
        if not known:
            return "no trainer has a home just now", set()
        name = self.rng.choice(known)
        with suppress(ProcessLookupError):
            os.kill(seen["sentinels"][name][0], signal.SIGKILL)
        return f"the home of {name}", set()

    def _raylet(self, seen: dict[str, Any]) -> tuple[str, set[str]]:
        machine = self.rng.choice([1, 2])
        for number in MACHINES.pids(machine):
            with suppress(psutil.Error):
                process = psutil.Process(number)
                if process.name() == "raylet":
                    process.kill()
        return f"the raylet of machine {machine}", _gates_on(seen, machine)

    def _link(self, seen: dict[str, Any]) -> tuple[str, set[str]]:
        machine = self.rng.choice([1, 2])
        ip("link", "set", MACHINES.link(machine), "down")
        time.sleep(CUT_S)
        ip("link", "set", MACHINES.link(machine), "up")
        return f"machine {machine} cut off for {CUT_S:.0f} s", set()


def _gates_on(seen: dict[str, Any], machine: int) -> set[str]:
    return {gate for gate, (_, node, _) in seen["gates"].items() if node == MACHINES.address(machine)}


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────


def _on(home: Path, machine: int, *words: str, **environment: str) -> Command:
    return Command(home / str(machine), MACHINES.names[machine], *words, **environment)


def disturbed(given: argparse.Namespace, home: Path) -> dict[str, Any]:
    """The run with faults."""
    start = _on(
        home, 0, "-m", "akkordeon.cli.main", "network", "start", f"{HERE / 'network.py'}:row",
        "--listen", AT, "--name", NAME, "--machines", "3",
    )  # fmt: skip
    token = {"RAY_AUTH_TOKEN": start.until(r"export RAY_AUTH_TOKEN=(\w+)").group(1)}

    def command(machine: int, *words: str) -> Command:
        return _on(home, machine, "-m", "akkordeon.cli.main", *words, **token)

    def trainer(machine: int, name: str) -> Service:
        words = (
            "sentinel",
            "train",
            "--network",
            f"{AT}/{NAME}",
            "--data",
            "mnist",
            "--data-dir",
            given.data_dir,
        )
        more = (
            "--epochs",
            "100000",
            "--in-flight",
            "3",
            "--name",
            name,
            "--patience",
            "60",
            "--seed",
            str(machine),
        )
        return Service(lambda: command(machine, *words, *more))

    members = [Service(lambda i=i: command(i, "join", AT)) for i in (1, 2)]  # type: ignore[misc]
    start.until("runs with .* gates")
    trainers = {name: trainer(i, name) for i, name in enumerate(("first", "second", "third"))}
    watch = _on(home, 0, str(HERE / "watch.py"), AT, NAME, **token)
    for each in trainers.values():
        each.now.until("is attached")
    chaos = Chaos(Random(given.seed), Sight(watch), trainers)
    began_s = time.monotonic()
    while time.monotonic() < began_s + 60 * given.minutes:
        chaos.do(chaos.rng.choice(KINDS), given.every)
    time.sleep(15)  # whoever was begun again may still be coming
    version = max(version or 0 for _, _, version in chaos.sight.now()["gates"].values())
    for each in trainers.values():
        each.end()
    validator = command(
        0, "sentinel", "validate", "--network", f"{AT}/{NAME}", "--data", "mnist",
        "--data-dir", given.data_dir, "--every", "1", "--patience", "60",
    )  # fmt: skip
    accuracy = float(validator.until(r"accuracy ([\d.]+)").group(1))
    validator.end()
    watch.signal(signal.SIGKILL)
    replicas = _replicas(given, home, token) if given.replicas_minutes else None
    accounts = [account for each in trainers.values() for c in each.commands for account in _accounts(c)]
    for member in members:
        member.stop()
    return {
        "accuracy": accuracy,
        "updates": version,
        "accounts": accounts,
        "exact": all(sent == trained + refused + lost for sent, trained, refused, lost in accounts),
        "commands": sum(len(each.commands) for each in trainers.values()),
        "took_s": chaos.took_s,
        "never": chaos.never,
        "replicas": replicas,
        "said": {name: [c.lines[-1:] for c in each.commands] for name, each in trainers.items()},
    }


def _replicas(given: argparse.Namespace, home: Path, token: dict[str, str]) -> dict[str, Any]:
    """What became of a Downpour on the same machines."""
    words = given.data_dir, str(given.replicas_minutes), str(given.every), str(given.seed), str(REPLICAS)
    replicas = _on(home, 0, str(HERE / "replicas.py"), AT, *words, **token)
    line = replicas.until(r'^\{"accuracy".*', 60 * given.replicas_minutes + 600).group(0)
    print("\n".join(line for line in replicas.lines if re.match(r"  (shard|replica) ", line)), flush=True)
    return dict(json.loads(line))


def _accounts(command: Command) -> Iterator[tuple[int, ...]]:
    for line in command.lines:
        if found := COUNTS.search(line):
            yield tuple(int(number.replace(",", "")) for number in found.groups())


def undisturbed(given: argparse.Namespace, batches: int, replicas: int = 0) -> float:
    """The accuracy after as many batches on threads, where nothing happens."""
    import torch
    from network import row

    import akkordeon as ak
    from akkordeon.experiments.tasks.loader import load_task

    torch.manual_seed(0)
    task = load_task("mnist", given.data_dir)
    network = ak.Downpour(row(), replicas=replicas, push_every=2) if replicas else row()
    with ak.run(network) as session:
        in_flight = 3 if replicas else 9
        training = ak.Sentinel.train(task.train_batches(), task.loss, in_flight=in_flight, epochs=10**6)
        attached = session.attach(training)
        while attached.batches.trained < batches:
            time.sleep(0.05)
        attached.detach()
        attached.wait(60)
        validator = session.attach(ak.Sentinel.test(task.validate, task.loss, scores=task.scores)).wait(120)
        return float(validator.rounds[-1].scores["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=os.environ.get("AKKORDEON_DATA"), required=False)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument(
        "--replicas-minutes", type=float, default=5.0, help="of the Downpour; 0 leaves it out"
    )
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two minutes, and one")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.data_dir is None:
        parser.error("--data-dir DIR is missing: the folder with the files of MNIST")
    given.data_dir = str(Path(given.data_dir).resolve())
    if given.quick:
        given.minutes, given.replicas_minutes = 2.0, min(1.0, given.replicas_minutes)
    Path("/tmp/ray").mkdir(exist_ok=True)  # where each machine sees its own
    with tempfile.TemporaryDirectory(prefix="ak") as home, MACHINES.up():
        found = disturbed(given, Path(home))
    found["undisturbed"] = undisturbed(given, found["updates"])
    if found["replicas"]:
        found["replicas"]["undisturbed"] = undisturbed(given, found["replicas"]["account"][1], REPLICAS)
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def show(found: dict[str, Any]) -> None:
    """Print it."""
    _show_times(found["took_s"])
    print(f"never over: {found['never'] or 'none'}")
    print(
        f"accuracy {found['accuracy']:.4f}, undisturbed {found['undisturbed']:.4f}, both after "
        f"{found['updates']:,} updates"
    )
    sums = [sum(numbers) for numbers in zip(*found["accounts"], strict=True)] or [0] * 4
    print(
        f"{len(found['accounts'])} of {found['commands']} trainers gave an account: {sums[0]:,} sent, "
        f"{sums[1]:,} trained, {sums[2]:,} refused, {sums[3]:,} lost; exact: {found['exact']}"
    )
    if replicas := found["replicas"]:
        _show_times(replicas["took_s"])
        sent, trained, refused, lost = replicas["account"]
        print(
            f"Downpour: accuracy {replicas['accuracy']:.4f}, undisturbed {replicas['undisturbed']:.4f}; "
            f"{sent:,} sent, {trained:,} trained, {refused:,} refused, {lost:,} lost; "
            f"exact: {sent == trained + refused + lost}"
        )


def _show_times(took_s: dict[str, list[float]]) -> None:
    print(f"\n{'fault':10} {'times':>5} {'median s':>9} {'longest s':>10}")
    for kind, times_s in sorted(took_s.items()):
        print(f"{kind:10} {len(times_s):5} {statistics.median(times_s):9.1f} {max(times_s):10.1f}")


if __name__ == "__main__":
    main()
