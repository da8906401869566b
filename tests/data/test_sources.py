"""What is a source of batches and what is not: akkordeon.data.sources."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.harness import labels_of, numbered
from torch.utils.data import DataLoader, TensorDataset

from akkordeon.core.errors import DataError
from akkordeon.data.batches import Batches
from akkordeon.data.sources import as_batches, gives_new_tensors, is_indexable

X, Y = numbered(10)


def test_a_pair_of_tensors_becomes_batches() -> None:
    batches = as_batches(numbered(10), batch_size=4)
    assert isinstance(batches, Batches)
    assert [len(y) for _, y in batches] == [4, 4, 2]


@pytest.mark.parametrize("x", [(X, X), {"a": X}])
def test_a_pair_of_trees_of_tensors_becomes_batches(x: Any) -> None:
    batches = as_batches((x, Y), batch_size=4)
    assert isinstance(batches, Batches)
    assert labels_of(batches) == Y.tolist()


@pytest.mark.parametrize(
    "source",
    [Batches(X, Y, 3), [(X, Y), (X, Y)], ([X, Y], [X, Y]), ((X, Y),), (pair for pair in [(X, Y)])],
)
def test_what_has_batches_already_stays_as_it_is(source: Any) -> None:
    assert as_batches(source, batch_size=4) is source


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, ["int"]),
        (None, ["NoneType"]),
        (X, ["Tensor"]),
        ({"x": X}, ["dict"]),
        ("mnist", ["str"]),
        (TensorDataset(X, Y), ["TensorDataset"]),
        ([], ["list of 0"]),
        ([X, Y], ["item 0", "Tensor"]),
        ((X, Y, Y), ["item 0", "Tensor"]),
        ((X.numpy(), Y.numpy()), ["item 0", "ndarray"]),
        ([(X, Y), (X,)], ["item 1", "tuple"]),
        (list(zip(X, Y, strict=True)), ["list", "single samples", "DataLoader"]),
        (tuple(zip(X, Y, strict=True)), ["tuple", "single samples", "DataLoader"]),
        ((X, Y.numpy()), ["y must be a tensor", "ndarray"]),
        (((X, X), (Y, Y)), ["Batches(x, y, batch_size)", "a list"]),
    ],
)
def test_what_is_no_source_of_batches_is_refused_in_a_sentence(source: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        as_batches(source, batch_size=4)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_only_what_is_in_memory_is_indexable() -> None:
    for source in (Batches(X, Y, 4), [(X, Y)], ([X, Y],), (X, Y)):
        assert is_indexable(source)
    for other in (DataLoader(TensorDataset(X, Y)), (pair for pair in [(X, Y)]), iter([(X, Y)]), 3):
        assert not is_indexable(other)


def test_only_sources_that_give_new_tensors_each_time_are_not_copied() -> None:
    surely = [[(X, Y)], Batches(X, Y, 4), DataLoader(TensorDataset(X, Y), 4)]
    assert all(map(gives_new_tensors, surely))
    perhaps = [
        iter([(X, Y)]),
        DataLoader(TensorDataset(X, Y), 4, collate_fn=list),
        DataLoader(TensorDataset(X, Y), batch_size=None),
    ]
    assert not any(map(gives_new_tensors, perhaps))
