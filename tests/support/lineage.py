"""A network whose weights are a record of what they have learned from, and a learner to be killed.

Its first gate has a weight for each example, from which training takes one: 0, -1, -2 are examples that the
weights have learned from never, once, twice. Its last gate counts likewise all together.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

import akkordeon as ak
from akkordeon.core.errors import DataError, WaitTimeoutError
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder


class _Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def counting_network(examples: int) -> ak.Network:
    first = nn.Linear(examples, 1, bias=False)
    nn.init.zeros_(first.weight)
    return ak.Network(
        [ak.Gate(module, lambda ps: torch.optim.SGD(ps, lr=1.0)) for module in (first, _Shift())]
    )


class OneOf:
    """What was read as the example of that number."""

    def __init__(self, examples: int, keyed: bool = False) -> None:
        self._examples = examples
        self._keyed = keyed

    def __call__(self, record: dict) -> object:
        n = int(record["n"])
        x, y = torch.zeros(1, self._examples), torch.tensor([n])
        x[0, n] = 1
        return ak.Labelled(n, x, y) if self._keyed else (x, y)


def counted(outputs: Tensor, y: Tensor) -> Tensor:
    """A loss whose gradient is one."""
    return outputs.sum()


def learned(states: dict[str, dict[str, Tensor]]) -> list[int]:
    """How often each example was learned from, by the weights."""
    counts = (-states["gate/0"]["weight"][0]).round().int().tolist()
    assert sum(counts) == -round(states["gate/1"]["shift"].item())
    return counts


def latest(folder: Path) -> Checkpoint | None:
    with suppress(DataError):
        return CheckpointFolder.inside(folder).latest()
    return None


def learn_from_redis(url: str, folder: str, examples: int, every_s: float) -> None:
    """Go on with what is in a folder, with checkpoints all the time, up to the end of the stream."""
    kept = latest(Path(folder))
    with ak.run(counting_network(examples), ak.Threads(2), resume=kept) as session:
        session.checkpoint(folder)  # from here on nothing is acknowledged that is in none
        source = ak.RedisStream(url, "s", follow=False)
        stream = session.attach(
            ak.Sentinel.stream(source, counted, split=OneOf(examples), in_flight=3, name="learner")
        )
        while not stream.ended:
            session.checkpoint(folder)
            with suppress(WaitTimeoutError):
                stream.wait(every_s)
        session.checkpoint(folder)
