"""Sources cut down and dealt out: akkordeon.data.split."""

from __future__ import annotations

import pickle
import random

import pytest
import torch
from tests.support.harness import labels_of
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from akkordeon.core.errors import DataError
from akkordeon.data.batches import Batches
from akkordeon.data.sources import samples_of
from akkordeon.data.split import deal_data, take_samples

X = torch.arange(10.0)[:, None]
Y = torch.arange(10)
LIST = [(X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)]


class Stream:
    """Batches that can be read again and again, but not indexed."""

    def __iter__(self):
        yield from LIST


SOURCES = {
    "Batches": lambda: Batches(X, Y, batch_size=4),
    "a list": lambda: list(LIST),
    "a tuple": lambda: tuple(LIST),
    "a DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4),
    "any iterable": Stream,
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_the_first_samples_are_taken_and_the_last_batch_is_cut(make):
    for n in (1, 4, 7, 10):
        first = take_samples(make(), n)
        assert labels_of(first) == list(range(n))
        assert labels_of(first) == list(range(n)), "a second epoch is like the first"


@pytest.mark.parametrize("make", list(SOURCES.values())[:-1], ids=list(SOURCES)[:-1])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_parts_dealt_are_disjoint_and_together_all(make, n):
    parts = deal_data(make(), n)
    assert len(parts) == n
    assert sorted(label for part in parts for label in labels_of(part)) == list(range(10))


def test_parts_of_a_shuffling_loader_agree_on_the_order_in_every_epoch():
    loader = DataLoader(TensorDataset(X, Y), batch_size=1, shuffle=True)
    parts = deal_data(loader, 2, seed=3)
    epochs = [[labels_of(part) for part in parts] for _ in range(3)]
    assert all(sorted(one + other) == list(range(10)) for one, other in epochs)
    assert len({tuple(one) for one, _ in epochs}) == 3


def test_what_can_be_read_only_once_cannot_be_dealt():
    with pytest.raises(DataError, match="a generator can be read only once"):
        deal_data((batch for batch in LIST), 2)
    assert labels_of(deal_data((batch for batch in LIST), 1)[0]) == list(range(10))


class Shuffled(Sampler):
    """Draws from Python's random, as many do."""

    def __iter__(self):
        order = list(range(10))
        random.shuffle(order)
        return iter(order)

    def __len__(self):
        return 10


LOADERS = {
    "shuffle": {"shuffle": True},
    "a sampler": {"sampler": Shuffled()},
    "a sampler of batches": {"batch_sampler": BatchSampler(Shuffled(), 3, drop_last=False)},
    "weights": {"sampler": WeightedRandomSampler(torch.ones(10), 10, replacement=False)},
    "workers": {"shuffle": True, "num_workers": 1},
}


@pytest.mark.parametrize("how", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("cut", [10, 7])
def test_parts_of_any_loader_are_disjoint_in_every_epoch_whoever_is_ahead(how, cut):
    parts = deal_data(take_samples(DataLoader(TensorDataset(X, Y), **how), cut), 3)
    read = [[], [], []]
    for epochs in [(0, 0, 1, 2), (1, 2, 2, 1, 0)]:  # one part is two epochs ahead, then the others follow
        for i in epochs:
            read[i].append(labels_of(parts[i]))
    for epoch in range(3):
        together = [label for part in read for label in part[epoch]]
        assert len(together) == cut
        assert len(set(together)) == cut
    assert len({str([part[epoch] for part in read]) for epoch in range(3)}) == 3


def test_a_part_reads_no_sample_of_another_part():
    read = []

    class Spy(TensorDataset):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    part, other = deal_data(DataLoader(Spy(X, Y), batch_size=2), 2)
    assert labels_of(part) == read == [0, 1, 4, 5, 8, 9]
    assert labels_of(other) == [2, 3, 6, 7]


def test_orders_are_dropped_once_every_part_has_read_them():
    parts = deal_data(DataLoader(TensorDataset(X, Y)), 2)
    deal = parts[0].batch_sampler.deal
    for _ in range(3):
        labels_of(parts[0])
    assert len(deal._drawn) == 3
    labels_of(parts[1])
    assert len(deal._drawn) == 2
    del parts[1]
    labels_of(parts[0])
    assert not deal._drawn


def test_a_dealt_loader_goes_to_another_process_only_if_its_order_is_the_same_there():
    for part in pickle.loads(pickle.dumps(deal_data(DataLoader(TensorDataset(X, Y), shuffle=True), 2))):
        assert len(labels_of(part)) == 5
    with pytest.raises(DataError, match="whether a Shuffled gives the same order in another process"):
        pickle.dumps(deal_data(DataLoader(TensorDataset(X, Y), sampler=Shuffled()), 2))


class Lines(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


@pytest.mark.parametrize(
    ("make", "what"), [(Stream, "a Stream"), (lambda: DataLoader(Lines()), "a DataLoader of a Lines")]
)
def test_what_may_shuffle_by_itself_cannot_be_dealt(make, what):
    with pytest.raises(DataError, match=f"{what} cannot be dealt to 2 sentinels: nobody knows whether"):
        deal_data(make(), 2)


def test_too_few_batches_or_samples_cannot_be_dealt():
    with pytest.raises(DataError, match="cannot deal 3 batches to 4 sentinels"):
        deal_data(list(LIST), 4)
    with pytest.raises(DataError, match="11 of 10 samples"):
        deal_data(Batches(X, Y, 4), 11)


def test_less_than_one_sample_cannot_be_taken():
    with pytest.raises(DataError, match="cannot take 0"):
        take_samples(list(LIST), 0)
    with pytest.raises(DataError, match="cannot take 11 of 10"):
        take_samples(Batches(X, Y, 4), 11)


def test_samples_are_counted_where_that_needs_no_reading():
    assert samples_of(Batches(X, Y, 4)) == samples_of(list(LIST)) == 10
    assert samples_of(Stream()) is None


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ((X, Y), 10),
        (({"a": X, "b": X}, Y), 10),
        ([{"x": X, "y": Y}], None),  # to be split
        ([("a", "b")], None),
        ([("a", "b", "c")], None),
        ([], 0),
    ],
)
def test_a_pair_of_tensors_is_no_list_of_batches_and_those_of_another_form_are_not_counted(source, count):
    """Whoever showed how far training on a pair is failed: too many values to unpack."""
    assert samples_of(source) == count
