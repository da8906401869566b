"""A network that serves while it trains on two cores: latency, what training loses, bounds, memory.

python benchmarks/serving/run.py [--quick] [--json FILE] [--rate R] [--seconds S] [--minutes M]

Training alone, then while a client in a process of its own asks at a fixed rate, then alone again; then more
clients than there is room for. With --minutes it serves that long besides, and memory is looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[1]))
import figures

SAMPLES, FEATURES, WIDTH, CLASSES, BATCH = 8192, 32, 256, 10, 128
CLIENT = Path(__file__).with_name("client.py")
QUEUE_MAX = 64


def network() -> ak.Network:
    """Three gates."""

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-4)

    torch.manual_seed(0)
    sizes = [FEATURES, WIDTH, WIDTH, CLASSES]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    return ak.Network([ak.Gate(layer, adam) for layer in layers])


def asked(url: str, **options: float) -> dict[str, Any]:
    """What a client of its own process found."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(CLIENT), url, "--features", str(FEATURES), *words]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


class Pace:
    """How many batches are trained in a second."""

    def __init__(self, session: ak.Session) -> None:
        self._session = session
        self._before = self._now()

    def _now(self) -> tuple[int, float]:
        return self._session.status(30).batches.trained, time.monotonic()

    def since(self) -> float:
        before, self._before = self._before, self._now()
        return (self._before[0] - before[0]) / (self._before[1] - before[1])


def measure(rate: float, seconds: float, minutes: float, in_flight: int) -> dict[str, Any]:
    x, y = torch.randn(SAMPLES, FEATURES), torch.randint(CLASSES, (SAMPLES,))
    train = ak.Sentinel.train(ak.Batches(x, y, BATCH), cross_entropy, epochs=10**6, in_flight=in_flight)
    with ak.run(network(), ak.Threads(2)) as session:
        session.attach(train)
        time.sleep(min(2.0, seconds))
        pace = Pace(session)
        time.sleep(seconds)
        alone_before = pace.since()
        with session.serve(port=0, limits=ak.Limits(queue_max=QUEUE_MAX)) as server:
            asked(server.url, rate=rate, seconds=1)
            pace.since()
            steady = asked(server.url, rate=rate, seconds=seconds)
            serving, version = pace.since(), server.version
            idle = _idle(pace, seconds)
            crowded = asked(server.url, rate=0, seconds=min(10, seconds), connections=4 * QUEUE_MAX)
            memory = [_resident_after(server.url, rate) for _ in range(round(4 * minutes))]
        pace.since()
        time.sleep(seconds)
        alone = (alone_before + pace.since()) / 2
        session.detach("train", drop=True)
    return {
        "alone_batches_per_s": alone,
        "serving_batches_per_s": serving,
        "share": serving / alone,
        "share_if_nobody_asks": idle / alone,
        "steady": steady,
        "version": version,
        "crowded": crowded,
        "memory_mb": memory,
    }


def _idle(pace: Pace, seconds: float) -> float:
    pace.since()
    time.sleep(seconds)
    return pace.since()


def _resident_after(url: str, rate: float) -> float:
    asked(url, rate=rate, seconds=15)
    return round(figures.resident_mb(), 1)


def main() -> None:
    parser = figures.options(__doc__, quick="5 s each")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each part")
    parser.add_argument("--minutes", type=float, default=0.0, help="to look at memory, besides")
    parser.add_argument("--in-flight", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 5.0 if options.quick else options.seconds
    result = measure(options.rate, seconds, options.minutes, options.in_flight)
    figures.tell(result, options.json)


if __name__ == "__main__":
    sys.exit(main())
