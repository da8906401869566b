"""What is measured: five multilayer perceptrons, their gates and the data, the same for everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": partial(torch.optim.SGD, lr=0.01),
    "adam": partial(torch.optim.Adam, lr=1e-3, fused=True),
}


@dataclass(frozen=True)
class Setting:
    """One row of the table: widths from the input to the classes, and the samples of one update."""

    name: str
    layers: tuple[int, ...]
    batch: int


SETTINGS = (
    Setting("784-50-20-10, 128", (784, 50, 20, 10), 128),
    Setting("784-50-20-10, 1024", (784, 50, 20, 10), 1024),
    Setting("784-512-512-10, 128", (784, 512, 512, 10), 128),
    Setting("784-512-512-10, 1024", (784, 512, 512, 10), 1024),
    Setting("784-2048-2048-2048-10, 1024", (784, 2048, 2048, 2048, 10), 1024),
)


def build(setting: Setting, seed: int) -> nn.Sequential:
    """Linear and ReLU in turn, no ReLU after the last; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [layer for a, b in pairwise(setting.layers) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def gates(model: nn.Sequential) -> list[nn.Sequential]:
    """The model cut before each Linear; the gates share its parameters."""
    cuts = [i for i, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    return [nn.Sequential(*model[a:b]) for a, b in pairwise([*cuts, len(model)])]


def dataset(samples: int = 60_000) -> tuple[Tensor, Tensor]:
    """Random inputs (samples, 784) and labels, seeded, in shared memory: all read the same pages."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(samples, 784, generator=rng)
    y = torch.randint(10, (samples,), generator=rng)
    return x.share_memory_(), y.share_memory_()


def slices(samples: int, batch: int) -> list[slice]:
    """The full batches of one epoch in order; the incomplete last one is left out, for everybody."""
    return [slice(a, a + batch) for a in range(0, samples - batch + 1, batch)]
