"""What Downpour learns: accuracy by replicas and rule, uneven replicas, bytes on the wire. On MNIST.

    python benchmarks/downpour/study.py replicas   # 1 to 16 replicas: SGD, Adagrad, DC-ASGD-a, 1/τ
    python benchmarks/downpour/study.py rates      # the learning rates at which SGD fails and 1/τ holds
    python benchmarks/downpour/study.py uneven     # virtual time to 97 % with replicas of speed 1, 1, ½, ⅕
    python benchmarks/downpour/study.py bytes      # bytes per sample and accuracy, by push_every and dtype

All in the simulator, so that replicas truly run side by side on whatever machine this is: a batch takes a
replica 10 virtual milliseconds, a shard 0.1 for a push, a message 1 on its way. The mathematics is real.
784-512-512-10, standardised inputs, batch 128, equal samples for all; mean ± standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import akkordeon as ak
from akkordeon.core.reports import RoundDone, ShardStatus
from akkordeon.data.datasets import Dataset, mnist
from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown
from akkordeon.engines.simulator.links import Link

BATCH = 128
LR = 0.1
SERVER_COST = Cost(message_s=1e-4)
REPLICA_COST = Cost(forward_s=4e-3, backward_s=5e-3, update_s=1e-3)
BATCH_S = REPLICA_COST.batch_s
SPEEDS = (1.0, 1.0, 0.5, 0.2)
TARGET = 0.97

SGD = partial(torch.optim.SGD, lr=LR)


@dataclass
class Outcome:
    """One run: accuracy at the end, virtual seconds to the target (inf if never), and the shard."""

    accuracy: float
    target_s: float
    shard: ShardStatus


def module(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def run(
    data: Dataset,
    seed: int,
    samples: int,
    *,
    replicas: int,
    speeds: Sequence[float] = (),
    every_s: float | None = None,
    local: Callable[..., torch.optim.Optimizer] = SGD,
    **settings: Any,
) -> Outcome:
    """One Downpour of a single gate in the simulator; with ``every_s`` it ends at the target."""
    engine = ak.Simulator(
        seed,
        links=Link(1e-3),
        compute=Compute(
            {"shard/*": SERVER_COST, "replica/*": REPLICA_COST},
            [Slowdown(f"replica/{i}/*", 1 / speed) for i, speed in enumerate(speeds) if speed != 1],
        ),
    )
    recipe = ak.Downpour(ak.Network([ak.Gate(module(seed), local)]), replicas=replicas, **settings)
    target_s = float("inf")
    with ak.run(recipe, engine=engine, seed=seed) as session:
        batches = ak.Batches(*data.train, BATCH, shuffle=True, seed=seed)
        training = session.attach(
            ak.Sentinel.train(batches, F.cross_entropy, samples=samples, in_flight=1, name="t")
        )

        def look(record: Any) -> None:
            nonlocal target_s
            if isinstance(record, RoundDone) and record.scores["accuracy"] >= TARGET:
                target_s = min(target_s, engine.now_s())
                training.detach(drop=True)

        scores = {"accuracy": ak.accuracy}
        if every_s is not None:
            session.subscribe(look, inline=True)
            session.attach(
                ak.Sentinel.validate(data.test, F.cross_entropy, scores=scores, every_s=every_s, name="v")
            )
        training.wait()
        test = session.attach(ak.Sentinel.test(data.test, F.cross_entropy, scores=scores, name="end")).wait()
        shard = session.status().gates[0]
    assert isinstance(shard, ShardStatus)
    return Outcome(test.rounds[0].scores["accuracy"], target_s, shard)


def told(numbers: Sequence[float], form: str = ".4f") -> str:
    if len(numbers) == 1:
        return f"{numbers[0]:{form}}"
    return f"{statistics.mean(numbers):{form}} ± {statistics.stdev(numbers):{form}}"


# ── the studies ──────────────────────────────────────────────────────────────────────────────────────

RULES: dict[str, dict[str, Any]] = {
    "SGD": {"server_optimizer": SGD},
    "Adagrad, local steps": {"server_optimizer": partial(torch.optim.Adagrad, lr=0.01), "local_step": True},
    "DC-ASGD-a": {"server_optimizer": SGD, "staleness": ak.DelayCompensation("adaptive")},
    "1/τ": {"server_optimizer": SGD, "staleness": ak.InverseStaleness()},
}


def replicas(data: Dataset, seeds: int, samples: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Accuracy and staleness at equal samples."""
    found: dict[str, Any] = {}
    print(f"accuracy after {samples:,} samples, lr {LR} (Adagrad 0.01); mean τ behind it")
    print(f"{'replicas':22s}" + "".join(f"{size:>24d}" for size in sizes))
    for name, settings in RULES.items():
        row = []
        for size in sizes:
            given = {"local_step": False, "fetch": "wait"} | settings
            outcomes = [run(data, seed, samples, replicas=size, **given) for seed in range(seeds)]
            accuracies = [o.accuracy for o in outcomes]
            tau = statistics.mean(o.shard.staleness_mean for o in outcomes)
            found[f"{name}, {size}"] = {"accuracy": accuracies, "tau": tau}
            row.append(f"{told(accuracies)} ({tau:.1f})")
        print(f"{name:22s}" + "".join(f"{cell:>24s}" for cell in row), flush=True)
    return found


def rates(data: Dataset, seeds: int, samples: int, size: int) -> dict[str, Any]:
    """SGD against 1/τ over learning rates."""
    found: dict[str, Any] = {}
    grid = (0.05, 0.1, 0.2, 0.4, 0.8)
    print(f"accuracy of {size} replicas after {samples:,} samples, by learning rate")
    print(f"{'':22s}" + "".join(f"{lr:>22g}" for lr in grid))
    for name, replicas_, rule in (
        ("SGD, 1 replica", 1, ak.Stash()),
        (f"SGD, {size} replicas", size, ak.Stash()),
        (f"1/τ, {size} replicas", size, ak.InverseStaleness()),
    ):
        row = []
        for lr in grid:
            accuracies = [
                run(
                    data, seed, samples, replicas=replicas_, staleness=rule, local_step=False, fetch="wait",
                    server_optimizer=partial(torch.optim.SGD, lr=lr),
                ).accuracy
                for seed in range(seeds)
            ]  # fmt: skip
            found[f"{name}, {lr}"] = accuracies
            row.append(told(accuracies))
        print(f"{name:22s}" + "".join(f"{cell:>22s}" for cell in row), flush=True)
    return found


def local_sgd(**more: Any) -> dict[str, Any]:
    return {"push": "differences", "push_every": 16, "fetch": "wait"} | more


N = len(SPEEDS)
GENTLE = partial(torch.optim.SGD, lr=LR / 4)
DELAYED = partial(ak.DelayedNesterov, lr=1.0, momentum=0.5, buffer=N)
UNEVEN: dict[str, dict[str, Any]] = {
    "Downpour, SGD": {"server_optimizer": GENTLE, "local_step": False, "fetch": "wait"},
    "Downpour, 1/τ": {
        "server_optimizer": SGD,
        "local_step": False,
        "fetch": "wait",
        "staleness": ak.InverseStaleness(),
    },
    "async local SGD, averaging": local_sgd(server_optimizer=partial(torch.optim.SGD, lr=1 / N)),
    "  + outer Nesterov": local_sgd(
        server_optimizer=partial(torch.optim.SGD, lr=1 / N, momentum=0.5, nesterov=True)
    ),
    "  + delayed Nesterov": local_sgd(server_optimizer=DELAYED),
    "  + dynamic local steps": local_sgd(
        server_optimizer=partial(torch.optim.SGD, lr=1 / N), steps_by_speed=True
    ),
    "  + both": local_sgd(server_optimizer=DELAYED, steps_by_speed=True),
}


def synchronous(data: Dataset, seed: int, lr: float, every_s: float, most_s: float) -> float:
    """Virtual seconds to the target of data parallelism: each step waits for the slowest replica."""
    model = module(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    step_s, now_s, due_s = BATCH_S / min(SPEEDS), 0.0, every_s
    batches = ak.Batches(*data.train, BATCH * N, shuffle=True, seed=seed)
    while now_s < most_s:
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            now_s += step_s
            if now_s >= due_s:
                due_s += every_s
                if ak.accuracy(_outputs(model, data.test[0]), data.test[1]).item() >= TARGET:
                    return now_s
    return float("inf")


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> Tensor:
    outputs: Tensor = model(x)
    return outputs


def uneven(data: Dataset, seeds: int, samples: int) -> dict[str, Any]:
    """Virtual seconds to the target."""
    found: dict[str, Any] = {}
    print(
        f"virtual seconds to {TARGET:.0%}; replicas of speed {SPEEDS}, lr {LR}, push_every 16 for local SGD"
    )
    arms: dict[str, Callable[[int], float]] = {
        "synchronous data parallelism": lambda seed: synchronous(data, seed, LR, 1.0, 200.0),
        "  + lr × 4, as its batch": lambda seed: synchronous(data, seed, N * LR, 1.0, 200.0),
    }
    for name, settings in UNEVEN.items():
        arms[name] = partial(_to_target, data, samples, settings)
    for name, arm in arms.items():
        seconds = [arm(seed) for seed in range(seeds)]
        found[name] = seconds
        print(f"{name:32s} {told(seconds, '.1f'):>16s}", flush=True)
    return found


def _to_target(data: Dataset, samples: int, settings: dict[str, Any], seed: int) -> float:
    return run(data, seed, samples, replicas=N, speeds=SPEEDS, every_s=1.0, **settings).target_s


def bytes_(data: Dataset, seeds: int, samples: int) -> dict[str, Any]:
    """Bytes of pushes and of fetches for each sample, and accuracy."""
    found: dict[str, Any] = {}
    print(f"4 replicas, {samples:,} samples, differences at outer rate 1/4 (gradients for push_every 1)")
    headings = ("B pushed/sample", "B fetched/sample")
    print(f"{'push_every':>10s} {'pushes':>8s} {headings[0]:>18s} {headings[1]:>18s} {'accuracy':>20s}")
    for push_every in (1, 16, 64):
        for kind in (None, "bf16", "int8"):
            many = {
                "push": "differences",
                "push_every": push_every,
                "fetch": "wait",
                "server_optimizer": partial(torch.optim.SGD, lr=0.25),
            }
            settings = {"server_optimizer": SGD, "local_step": False} if push_every == 1 else many
            outcomes = [
                run(data, seed, samples, replicas=4, compression=kind, **settings) for seed in range(seeds)
            ]
            accuracies = [o.accuracy for o in outcomes]
            pushed, fetched = (
                statistics.mean(getattr(o.shard, what) for o in outcomes) / samples
                for what in ("bytes_in", "bytes_out")
            )
            name = kind or "fp32"
            found[f"{push_every}, {name}"] = {"pushed": pushed, "fetched": fetched, "accuracy": accuracies}
            print(f"{push_every:>10d} {name:>8s} {pushed:>18,.0f} {fetched:>18,.0f} {told(accuracies):>20s}",
                  flush=True)  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["replicas", "rates", "uneven", "bytes"])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer samples and sizes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--samples",
        type=int,
        help="in all; 180,000 (uneven 720,000; others with --quick 12,800) if not given",
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("AKKORDEON_DATA"), help="folder of MNIST"
    )
    given = parser.parse_args()
    if given.data_dir is None:
        sys.exit("this needs MNIST; give --data-dir or set AKKORDEON_DATA")
    torch.set_num_threads(1)
    folder = Path(given.data_dir)
    data = mnist(folder / "mnist" if (folder / "mnist").is_dir() else folder, standardise=True)
    seeds = 1 if given.quick else given.seeds
    samples = given.samples or (12_800 if given.quick else 180_000)
    sizes = (1, 4, 16) if given.quick else (1, 2, 4, 8, 16)
    studies: dict[str, Callable[[], dict[str, Any]]] = {
        "replicas": lambda: replicas(data, seeds, samples, sizes),
        "rates": lambda: rates(data, seeds, samples, 16),
        "uneven": lambda: uneven(data, seeds, given.samples or 720_000),
        "bytes": lambda: bytes_(data, seeds, samples),
    }
    found = studies[given.study]()
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
