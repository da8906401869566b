"""Sources cut down and dealt out: akkordeon.sources."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from akkordeon.data import Batches
from akkordeon.errors import DataError
from akkordeon.sources import dealt, samples_of, taken

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


def labels(source):
    return [label for _, y in source for label in y.tolist()]


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_the_first_samples_are_taken_and_the_last_batch_is_cut(make):
    for n in (1, 4, 7, 10):
        first = taken(make(), n)
        assert labels(first) == list(range(n))
        assert labels(first) == list(range(n)), "a second epoch is like the first"


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_parts_dealt_are_disjoint_and_together_all(make, n):
    parts = dealt(make(), n)
    assert len(parts) == n
    assert sorted(label for part in parts for label in labels(part)) == list(range(10))


def test_parts_of_a_shuffling_loader_agree_on_the_order_in_every_epoch():
    loader = DataLoader(TensorDataset(X, Y), batch_size=1, shuffle=True)
    parts = dealt(loader, 2, seed=3)
    epochs = [[labels(part) for part in parts] for _ in range(3)]
    assert all(sorted(one + other) == list(range(10)) for one, other in epochs)
    assert len({tuple(one) for one, _ in epochs}) == 3


def test_what_can_be_read_only_once_cannot_be_dealt():
    with pytest.raises(DataError, match="a generator can be read only once"):
        dealt((batch for batch in LIST), 2)
    assert labels(dealt((batch for batch in LIST), 1)[0]) == list(range(10))


def test_too_few_batches_or_samples_cannot_be_dealt():
    with pytest.raises(DataError, match="cannot deal 3 batches to 4 sentinels"):
        dealt(list(LIST), 4)
    with pytest.raises(DataError, match="11 of 10 samples"):
        dealt(Batches(X, Y, 4), 11)


def test_less_than_one_sample_cannot_be_taken():
    with pytest.raises(DataError, match="cannot take 0"):
        taken(list(LIST), 0)
    with pytest.raises(DataError, match="cannot take 11 of 10"):
        taken(Batches(X, Y, 4), 11)


def test_samples_are_counted_where_that_needs_no_reading():
    assert samples_of(Batches(X, Y, 4)) == samples_of(list(LIST)) == 10
    assert samples_of(Stream()) is None
