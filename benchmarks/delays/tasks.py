"""What staleness rules are tried on: tasks for ``akkordeon compare benchmarks/delays/tasks.py:NAME``.

Their data is found in the folder of AKKORDEON_DATA: mnist/ and tinyshakespeare/input.txt.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.data.datasets import mnist

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import char_gpt as example

LENGTH, WIDTH = 64, 64
VALIDATED = 64
"""Batches of text that a run is judged by."""


def _folder() -> Path:
    if "AKKORDEON_DATA" not in os.environ:
        raise ak.AkkordeonError("these tasks need their data: set AKKORDEON_DATA")
    return Path(os.environ["AKKORDEON_DATA"])


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)  # a comparison has others


def _images(gates: list[nn.Module]) -> ak.Task:
    """MNIST for a row of these."""
    data = mnist(_folder() / "mnist")
    network = ak.Network([ak.Gate(gate, _sgd) for gate in gates])
    return ak.Task(network, data.train, data.test, F.cross_entropy, {"accuracy": ak.accuracy})


def _layers(*sizes: int) -> list[nn.Module]:
    """A linear layer a gate, with a ReLU behind all but the last."""
    *hidden, last = [nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes)]
    return [*(nn.Sequential(layer, nn.ReLU()) for layer in hidden), last]


def mlp() -> ak.Task:
    """MNIST, 784-256-256-10 in three gates."""
    return _images(_layers(784, 256, 256, 10))


def deep_mlp() -> ak.Task:
    """MNIST, twenty gates of a layer each: early mistakes grow on their way down.

    Weights begin as He et al. (2015, arXiv:1502.01852) have them: with those of PyTorch it learns nothing.
    """
    gates = _layers(784, *[64] * 19, 10)
    for weight in (each for gate in gates for each in gate.parameters() if each.dim() > 1):
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    return _images(gates)


def lenet() -> ak.Task:
    """MNIST, two convolutions and two linear layers, a gate each (after LeCun et al. 1998)."""
    return _images(
        [
            nn.Sequential(
                nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)
            ),
            nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(400, 120), nn.ReLU()),
            nn.Linear(120, 10),
        ]
    )


def quadratic() -> ak.Task:
    """A linear model of 64 inputs without noise: a quadratic of condition 1,000 that ends at 0."""
    draw = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -1.5, 64)
    x = torch.randn(4096, 64, generator=draw) * scales
    points = x, x @ torch.randn(64, 1, generator=draw)
    network = ak.Network([ak.Gate(nn.Linear(64, 1, bias=False), _sgd)])
    return ak.Task(network, points, points, F.mse_loss, batch_size=32)


class _Embedding(nn.Module):
    """Characters and their places as vectors: (B, T) to (B, T, W)."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.tok_emb.weight, std=0.02)
        nn.init.normal_(self.pos_emb.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        return self.tok_emb(text) + self.pos_emb.weight[: text.shape[1]]


def char_gpt() -> ak.Task:
    """Tiny Shakespeare, eight blocks of width 64 in eight gates; 8 rows of 64 characters a batch."""
    text = (_folder() / "tinyshakespeare" / "input.txt").read_text()
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    coded = torch.tensor([number[character] for character in text])
    rows = coded[: (len(coded) - 1) // LENGTH * LENGTH].view(-1, LENGTH)
    following = coded[1 : rows.numel() + 1].view(-1, LENGTH)
    held_out = VALIDATED * 16
    blocks: list[OrderedDict[str, nn.Module]] = [OrderedDict(block=example.Block(WIDTH)) for _ in range(8)]
    blocks[0] = OrderedDict(embedding=_Embedding(len(characters)), **blocks[0])
    blocks[-1] |= {"norm": nn.LayerNorm(WIDTH), "head": nn.Linear(WIDTH, len(characters), bias=False)}
    network = ak.Network([ak.Gate(nn.Sequential(block), _sgd) for block in blocks])
    return ak.Task(
        network,
        (rows[:-held_out], following[:-held_out]),
        (rows[-held_out:], following[-held_out:]),
        example.loss,
        batch_size=8,
    )
