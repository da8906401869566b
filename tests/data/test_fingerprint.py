"""A place in data says nothing of other data, so that they are told apart."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import akkordeon as ak
from akkordeon.data.fingerprint import difference, fingerprint

X, Y = torch.arange(12.0).reshape(6, 2), torch.arange(6)


def test_equal_data_have_equal_fingerprints():
    assert (
        difference(fingerprint(ak.Batches(X, Y, 2)), fingerprint(ak.Batches(X.clone(), Y.clone(), 2))) is None
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (ak.Batches(X, Y, 3), "their batch_size was 2 and is 3"),
        (ak.Batches(X, Y, 2, shuffle=True), "their shuffle was False and is True"),
        (ak.Batches(X[:4], Y[:4], 2), "their samples was 6 and is 4"),
        (ak.Batches(X + 1, Y, 2), "they have other inputs"),
        (ak.Batches(X, Y + 1, 2), "they have other labels"),
        (DataLoader(TensorDataset(X, Y), 2), "their kind was 'Batches' and is 'a DataLoader'"),
        ([(X, Y)], "their kind was 'Batches' and is 'a source of its own'"),
    ],
)
def test_it_is_said_in_what_others_differ(other, words):
    assert difference(fingerprint(ak.Batches(X, Y, 2)), fingerprint(other)) == words


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (DataLoader(TensorDataset(X[:4], Y[:4]), 2), "their samples was 6 and is 4"),
        (DataLoader(TensorDataset(X, Y), 2, shuffle=True), "their shuffle was False and is True"),
    ],
)
def test_of_a_loader_it_is_seen_how_many_samples_it_has_and_whether_it_shuffles(other, words):
    """A run on another data set was taken up as if it were the same."""
    assert difference(fingerprint(DataLoader(TensorDataset(X, Y), 2)), fingerprint(other)) == words


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(X, Y)])


def test_a_loader_of_a_stream_has_no_length():
    assert fingerprint(DataLoader(Endless(), None))["samples"] is None


def test_a_checkpoint_that_says_less_is_held_against_what_it_says():
    here = fingerprint(DataLoader(TensorDataset(X, Y), 2))
    assert difference({"kind": "a DataLoader", "batch_size": 2}, here) is None


@pytest.mark.parametrize("shuffle", [False, True])
def test_sparse_inputs_have_one_too(shuffle):
    """They could be cut into batches, and not be attached."""
    batches = ak.Batches(X.to_sparse(), Y, 2, shuffle=shuffle)
    assert fingerprint(batches)["inputs"] == fingerprint(ak.Batches(X, Y, 2))["inputs"]


def test_nothing_is_read_of_a_stream():
    stream = iter([(X, Y)])
    fingerprint(stream)
    assert next(stream) == (X, Y)
