"""The peers' seconds of training until 784-512-512-10 classifies 97.5 % of MNIST's test images.

Everybody runs fused Adam at 1e-3 on batches of 128, in an order shuffled anew each epoch, and is evaluated
after every 100 updates with the clock stopped.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from peers import WARM_UP
from processes import Meeting, intra_op_threads, launch
from settings import OPTIMIZERS, SETTINGS, build, slices
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTING = next(setting for setting in SETTINGS if setting.name == "784-512-512-10, 128")
TARGET = 0.975
EVERY = 100  # updates between two evaluations, all processes together
UPDATES_MAX = 20_000  # then it gives up and the answer is infinity
LIMIT_S = 1_800.0

Data = tuple[Tensor, Tensor]


def plain(train: Data, test: Data, seed: int, *, threads: int = 2, target: float = TARGET) -> float:
    """Seconds of the usual loop in this process until the test accuracy is reached."""
    model = build(SETTING, seed)
    with intra_op_threads(threads):
        warm_up(model, train)
        step, order, seconds = update_of(model, train), batches(len(train[0]), seed), 0.0
        for _ in range(UPDATES_MAX // EVERY):
            start = time.perf_counter()
            for index in islice(order, EVERY):
                step(index)
            seconds += time.perf_counter() - start
            if accuracy(model, test) >= target:
                return seconds
    return math.inf


@dataclass
class Race:
    """What every Hogwild process is given; tensors, model and results lie in shared memory."""

    train: Data
    test: Data
    seed: int
    target: float
    model: nn.Sequential
    meeting: Meeting
    seconds: Tensor = field(init=False)
    reached: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for tensor in (*self.train, *self.test):
            tensor.share_memory_()
        self.model.share_memory()
        self.seconds = torch.zeros(1, dtype=torch.float64).share_memory_()
        self.reached = torch.zeros(1, dtype=torch.bool).share_memory_()


def hogwild(train: Data, test: Data, seed: int, *, processes: int = 2, target: float = TARGET) -> float:
    """Seconds of processes that share the parameters without locks until the test accuracy is reached."""
    if EVERY % processes:
        raise ValueError(f"{EVERY} updates do not split evenly between {processes} processes")
    race = Race(train, test, seed, target, build(SETTING, seed), Meeting(processes))
    launch(hogwild_worker, processes, LIMIT_S, race)
    return race.seconds.item() if race.reached.item() else math.inf


def hogwild_worker(rank: int, race: Race) -> None:
    """Every processes-th batch, on the shared parameters, with gradients and an Adam of its own."""
    torch.set_num_threads(1)
    warm_up(race.model, race.train)
    step = update_of(race.model, race.train)
    order = islice(batches(len(race.train[0]), race.seed), rank, None, race.meeting.processes)
    for _ in range(UPDATES_MAX // EVERY):
        race.meeting.wait()
        start = time.perf_counter()
        for index in islice(order, EVERY // race.meeting.processes):
            step(index)
        race.meeting.wait()
        if rank == 0:
            race.seconds += time.perf_counter() - start
            race.reached.fill_(accuracy(race.model, race.test) >= race.target)
        race.meeting.wait()
        if race.reached.item():
            return


def update_of(model: nn.Module, train: Data) -> Callable[[Tensor], None]:
    """The usual loop's body: one Adam update on the samples of an index."""
    x, y = train
    optimizer = OPTIMIZERS["adam"](model.parameters())

    def step(index: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()

    return step


def batches(samples: int, seed: int) -> Iterator[Tensor]:
    """Full batches of indices without end, shuffled anew each epoch; a seed gives all the same order."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(samples, generator=rng)
        yield from (order[part] for part in slices(samples, SETTING.batch))


def warm_up(model: nn.Module, train: Data) -> None:
    """A few updates of a copy, so that thread pools and code are there when the clock starts."""
    step = update_of(copy.deepcopy(model), train)
    for index in islice(batches(len(train[0]), seed=0), WARM_UP):
        step(index)


@torch.no_grad()
def accuracy(model: nn.Module, test: Data) -> float:
    """The share of the test images that the model classifies correctly."""
    x, y = test
    return (model(x).argmax(1) == y).sum().item() / len(y)
