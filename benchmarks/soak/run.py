"""Whether memory grows with the length of a run: an endless stream with batches of one, on threads.

python benchmarks/soak/run.py [--quick] [--minutes M] [--json FILE]

Sentinels come and go meanwhile, some batches are refused, their sizes differ, a watcher listens, checkpoints
are taken, and somebody asks how all are.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[1]))
import figures

WIDTH = 16


def stream() -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one sequence each, of 1 to 64 steps; one in a thousand is not finite."""
    generator = torch.Generator().manual_seed(0)
    for i in itertools.count():
        steps = int(torch.randint(1, 65, (), generator=generator))
        x = torch.randn(1, steps, WIDTH, generator=generator)
        yield (x * float("nan") if i % 1000 == 999 else x), x.mean((1, 2), keepdim=False).unsqueeze(1)


class Last(nn.Module):
    """The mean over all steps."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def network() -> ak.Network:
    """Three small gates."""

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-3)

    return ak.Network(
        [
            ak.Gate(nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU()), adam),
            ak.Gate(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), Last()), adam),
            ak.Gate(nn.Linear(32, 1), adam),
        ]
    )


def soak(minutes: float, marks: list[float]) -> dict[str, Any]:
    """Run so long; the memory at some minutes."""
    loss, found = nn.MSELoss(), {}
    test_x = torch.randn(64, 8, WIDTH)
    test = (test_x, test_x.mean((1, 2)).unsqueeze(1))
    heard = itertools.count()
    with ak.run(network(), ak.Threads(2)) as session:
        session.subscribe(lambda record: next(heard))
        steady = session.attach(
            ak.Sentinel.train(stream(), loss, seconds=minutes * 60 + 60, report_every=1.0, name="steady")
        )
        session.attach(ak.Sentinel.validate(test, loss, every_s=2.0, best=ak.Best("loss"), name="validator"))
        session.attach(ak.Sentinel.checkpoint(every_s=5.0))
        began_s, visitor = time.monotonic(), 0
        for mark in sorted({*marks, minutes}):
            while (now_s := time.monotonic() - began_s) < mark * 60:
                guest = session.attach(ak.Sentinel.train(test, loss, batch_size=4, name=f"visitor {visitor}"))
                visitor += 1
                session.predict(test[0][:2])
                session.status()
                guest.wait(60)
                time.sleep(0.2)
            gc.collect()
            found[mark] = figures.resident_mb()
            print(
                f"{mark:5.1f} min  {found[mark]:7.1f} MB  {steady.batches}  {visitor} visitors",
                file=sys.stderr,
            )
        batches = steady.batches
    return {
        "memory_mb": found,
        "batches": batches.as_tuple(),
        "visitors": visitor,
        "records": next(heard),
        "seconds": now_s,
    }


def main() -> None:
    parser = figures.options(__doc__, quick="one minute")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    minutes = 1.0 if options.quick else options.minutes
    marks = [0.25, 0.5] if options.quick else [1.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    result = soak(minutes, [mark for mark in marks if mark < minutes])
    figures.tell(result, options.json)


if __name__ == "__main__":
    main()
