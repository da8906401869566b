"""The example's character GPT, twice as wide, as a task: `akkordeon plan benchmarks/planner/gpt.py:task`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

import akkordeon as ak

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from char_gpt import GPT, LENGTH, loss

CHARACTERS, WIDTH, BATCH = 65, 128, 16


def task() -> ak.Task:
    """On a batch of random text, which costs what other text does."""
    text = torch.randint(CHARACTERS, (BATCH, LENGTH + 1))
    x, y = text[:, :-1], text[:, 1:]
    adam = partial(torch.optim.Adam, lr=1e-4, fused=True)
    network = ak.Network.from_module(GPT(CHARACTERS, WIDTH), 1, adam, example=x, tie=True)
    return ak.Task(network, [(x, y)], [(x, y)], loss, batch_size=BATCH)
