"""More sentinels than a network can serve: fair shares, memory, throughput, and what attaching costs.

python benchmarks/overload/run.py [--quick] [--json FILE] [--sentinels N] [--seconds S]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[1]))
import figures

SAMPLES, WIDTH, BATCH = 4096, 32, 16


def network() -> ak.Network:
    """Three gates; as many batches may be in flight as there are sentinels."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e-4)

    torch.manual_seed(0)
    sizes = [WIDTH, 64, 64, 10]
    gates = [ak.Gate(nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()), sgd) for i in range(3)]
    return ak.Network(gates, max_in_flight=100_000)


def crowd(count: int, seconds: float, in_flight: int = 1) -> dict[str, Any]:
    """So many sentinels train for so long; one in ten has ten times the batches in flight."""
    x, y = torch.randn(SAMPLES, WIDTH), torch.randint(10, (SAMPLES,))
    batches, loss = ak.Batches(x, y, BATCH), nn.CrossEntropyLoss()
    before_mb, attach_s = figures.resident_mb(), []
    with ak.run(network(), ak.Threads(2)) as session:
        attached = []
        for number in range(count):
            under_way = 10 * in_flight if number % 10 == 9 else in_flight
            sentinel = ak.Sentinel.train(
                batches, loss, epochs=10**6, in_flight=under_way, report_every=None, name=f"s{number}"
            )
            began_s = time.monotonic()
            attached.append(session.attach(sentinel))
            attach_s.append(time.monotonic() - began_s)
        session.status(30)
        then = [a._batches.trained for a in attached]
        began_s = time.monotonic()
        time.sleep(seconds)
        session.status(30)
        took_s = time.monotonic() - began_s
        served = [a._batches.trained - t for a, t in zip(attached, then, strict=True)]
        memory_mb = figures.resident_mb() - before_mb
    return {
        "sentinels": count,
        "batches_per_s": sum(served) / took_s,
        "least": min(served),
        "most": max(served),
        "memory_mb": memory_mb,
        "attach_first_ms": 1000 * statistics.median(attach_s[:20]),
        "attach_last_ms": 1000 * statistics.median(attach_s[-20:]),
    }


def main() -> None:
    parser = figures.options(__doc__, quick="100 sentinels for 5 s")
    parser.add_argument("--sentinels", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, seconds = (100, 5.0) if options.quick else (options.sentinels, options.seconds)
    result = {"one": crowd(1, seconds), "many": crowd(count, seconds)}
    figures.tell(result, options.json)


if __name__ == "__main__":
    sys.exit(main())
