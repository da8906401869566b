"""What everybody trains: the models cut into three parts, the data, and how a rate is measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akkordeon.data.datasets import mnist

sys.path.append(str(Path(__file__).parents[1] / "throughput"))  # behind this folder: both have an ours.py
from settings import SETTINGS, build, dataset, gates, slices

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import char_gpt as gpt

__all__ = ["WORKS", "Work", "adam", "curve", "digits", "measured", "work_of"]

LR = 1e-3
DIFFERENT, EPOCH = 20, 10_000  # batches
CHARACTERS, WIDTH = 65, 208

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Work:
    """A model in three parts, and its batches.

    Args:
        parts: of the model, from a seed.
        batches: some that differ.
        loss: a mean over the batch.
        size: samples in a batch.
        units: what is counted of a sample: one, or its tokens.
    """

    parts: Callable[[int], list[nn.Sequential]]
    some: Callable[[], Batches]
    loss: Callable[[Tensor, Tensor], Tensor]
    size: int
    units: int = 1

    def batches(self) -> Batches:
        """Few of them, again and again, so that they are soon sent."""
        return self.some() * (EPOCH // DIFFERENT)


def work_of(job: dict[str, Any]) -> Work:
    return _nothing(job["bytes"]) if "bytes" in job else WORKS[job.get("model", "mlp")]


def _nothing(nbytes: int) -> Work:
    """Modules that do nothing with so many bytes."""
    x = torch.zeros(1, nbytes // 4)
    parts = [nn.Sequential(nn.Identity()) for _ in range(3)]
    return Work(lambda seed: parts, lambda: [(x, x)] * DIFFERENT, lambda outputs, y: outputs.sum(), 1)


SETTING = next(setting for setting in SETTINGS if setting.name == "784-512-512-10, 128")


def _mlp(seed: int) -> list[nn.Sequential]:
    """784-512-512-10, cut before each Linear."""
    return gates(build(SETTING, seed))


def _images() -> Batches:
    x, y = dataset(DIFFERENT * SETTING.batch)
    return [(x[cut].clone(), y[cut].clone()) for cut in slices(len(x), SETTING.batch)]


class _Positions(nn.Embedding):
    """Adds to each character of a row what its place is."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) to the same."""
        return x + self.weight[: x.shape[1]]


def _gpt(seed: int) -> list[nn.Sequential]:
    """The example's GPT of 4.2 million weights, with a head of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding = [nn.Embedding(CHARACTERS, WIDTH), _Positions(gpt.LENGTH, WIDTH)]
        blocks = [gpt.Block(WIDTH) for _ in range(gpt.BLOCKS)]
        head = [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS, bias=False)]
    return [
        nn.Sequential(*embedding, *blocks[:3]),
        nn.Sequential(*blocks[3:6]),
        nn.Sequential(*blocks[6:], *head),
    ]


def _text() -> Batches:
    text = torch.randint(
        CHARACTERS, (DIFFERENT, gpt.BATCH_SIZE, gpt.LENGTH + 1), generator=torch.Generator().manual_seed(0)
    )
    return [(rows[:, :-1].clone(), rows[:, 1:].clone()) for rows in text]


WORKS = {
    "mlp": Work(_mlp, _images, F.cross_entropy, SETTING.batch),
    "gpt": Work(_gpt, _text, gpt.loss, gpt.BATCH_SIZE, gpt.LENGTH),
}


def adam(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LR, fused=True)


def digits(folder: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """MNIST, to train and to test: inputs (N, 784) and labels."""
    data = mnist(Path(folder))
    return data.train, data.test


@torch.no_grad()
def curve(kept: list[tuple[float, nn.Module]], test: tuple[Tensor, Tensor]) -> list[tuple[float, float]]:
    """Seconds, and the share of the test images that a model was right about then."""
    x, y = test
    return [(at_s, float((model.eval()(x).argmax(1) == y).float().mean())) for at_s, model in kept]


def measured(step: Callable[[], None], seconds: float, agree: Callable[[float], float]) -> float:
    """Seconds of a step: of twice as many in a row, again and again, until they take so long.

    Args:
        agree: what the first process says, for all; it is called by all at once.
    """
    step()
    steps = 1
    while True:
        began_s = time.perf_counter()
        for _ in range(steps):
            step()
        took_s = agree(time.perf_counter() - began_s)
        if took_s >= seconds:
            return took_s / steps
        steps *= 2
