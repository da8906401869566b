"""Copies of a DataLoader that leave all random state alone: akkordeon.data.loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.support.harness import labels_of, numbered
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from akkordeon.data.loaders import private_loader
from akkordeon.data.sources import as_batches

NUMBERED = TensorDataset(*numbered(30))


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*numbered(30), strict=True)


RANDOM_LOADERS = {
    "shuffle": lambda: DataLoader(NUMBERED, 8, shuffle=True),
    "replacement": lambda: DataLoader(NUMBERED, 8, sampler=RandomSampler(NUMBERED, True, 25)),
    "subset": lambda: DataLoader(NUMBERED, 8, sampler=SubsetRandomSampler(range(20))),
    "weighted": lambda: DataLoader(NUMBERED, 8, sampler=WeightedRandomSampler([1.0] * 30, 20)),
    "batch sampler": lambda: DataLoader(
        NUMBERED, batch_sampler=BatchSampler(RandomSampler(NUMBERED), 8, False)
    ),
    "no batching": lambda: DataLoader(
        NUMBERED, None, sampler=BatchSampler(RandomSampler(NUMBERED), 8, False)
    ),
}
LOADERS = RANDOM_LOADERS | {
    "in order": lambda: DataLoader(NUMBERED, 8),
    "stream": lambda: DataLoader(Stream(), 8),
    "list as sampler": lambda: DataLoader(NUMBERED, 8, sampler=[3, 1, 2]),
}


def test_a_loader_as_the_user_made_it_moves_the_global_random_state() -> None:
    """The trap that private_loader is for; should torch ever close it, private_loader can go."""
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        iter(DataLoader(NUMBERED, 8))
        assert not torch.equal(before, torch.get_rng_state())


@pytest.mark.usefixtures("random_state")
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_a_private_loader_leaves_the_global_random_state_alone(make: Callable[[], Any]) -> None:
    loader = as_batches(make(), batch_size=4)
    for _ in range(2):
        assert labels_of(loader)


@pytest.mark.usefixtures("random_state")
@pytest.mark.parametrize("make", RANDOM_LOADERS.values(), ids=RANDOM_LOADERS.keys())
def test_private_loaders_of_one_seed_give_equal_batches_and_epochs_differ(make: Callable[[], Any]) -> None:
    def three_epochs(seed: int) -> list[list[int]]:
        loader = private_loader(original, seed)
        return [labels_of(loader) for _ in range(3)]

    original = make()
    first = three_epochs(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert three_epochs(0) == first
    assert three_epochs(1) != first
    assert len({tuple(epoch) for epoch in first}) == 3


def test_a_private_loader_leaves_the_loader_it_was_made_of_as_it_was() -> None:
    loader = DataLoader(NUMBERED, 8, shuffle=True)
    private_loader(loader)
    assert loader.generator is None
    assert isinstance(loader.sampler, RandomSampler)
    assert loader.sampler.generator is None
    assert isinstance(loader.batch_sampler, BatchSampler)
    assert loader.batch_sampler.sampler is loader.sampler


@pytest.mark.usefixtures("random_state")
def test_a_generator_the_user_gave_is_copied_so_the_batches_are_those_the_loader_would_give() -> None:
    loader = DataLoader(NUMBERED, 8, shuffle=True, generator=torch.Generator().manual_seed(5))
    private = [labels_of(private_loader(loader)) for _ in range(2)]
    assert private[0] == private[1] == labels_of(loader)


@pytest.mark.usefixtures("random_state")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # torch's workers are forked
def test_workers_of_a_private_loader_leave_the_global_random_state_alone(persistent: bool) -> None:
    loader = DataLoader(NUMBERED, 8, shuffle=True, num_workers=1, persistent_workers=persistent)
    private = private_loader(loader)
    epochs = [labels_of(private) for _ in range(2)]
    alone = private_loader(DataLoader(NUMBERED, 8, shuffle=True))
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 300, 10))
    assert epochs[0] != epochs[1]
    assert epochs[0] == labels_of(alone)
    # The workers stop with their iterators, now rather than at a later collection of garbage.
    private._iterator = None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # torch's workers are forked
def test_a_private_loader_starts_workers_of_its_own() -> None:
    loader = DataLoader(NUMBERED, 8, shuffle=True, num_workers=1, persistent_workers=True)
    with torch.random.fork_rng(devices=[]):
        running = iter(loader)
        next(running)
    assert len(labels_of(private_loader(loader))) == 30
    assert len(labels_of(running)) == 22  # nobody has read from them in the meantime
