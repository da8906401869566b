"""What everybody trains: the models cut into three parts, the data, and how a rate is measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from akkordeon.data.datasets import mnist

sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
from settings import SETTINGS, build, dataset, gates, slices

__all__ = ["BATCH", "LR", "adam", "batches", "curve", "digits", "measured", "parts"]

SETTING = next(setting for setting in SETTINGS if setting.name == "784-512-512-10, 128")
BATCH = SETTING.batch
LR = 1e-3
DIFFERENT, EPOCH = 20, 10_000  # batches


def parts(seed: int = 0) -> list[nn.Sequential]:
    """784-512-512-10, cut before each Linear."""
    return gates(build(SETTING, seed))


def adam(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LR, fused=True)


def batches() -> list[tuple[Tensor, Tensor]]:
    """Random inputs (BATCH, 784) and labels; few of them, again and again, so that they are soon sent."""
    x, y = dataset(DIFFERENT * BATCH)
    cuts = slices(len(x), BATCH)
    return [(x[cut].clone(), y[cut].clone()) for cut in cuts] * (EPOCH // DIFFERENT)


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
