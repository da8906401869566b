"""Batches cut from tensors: akkordeon.data.batches."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.support.harness import labels_of, numbered

from akkordeon.core.errors import DataError
from akkordeon.data.batches import Batches


def test_batches_come_in_order_and_the_last_partial_batch_counts() -> None:
    batches = Batches(*numbered(10), batch_size=4)
    pairs = list(batches)
    assert [y.tolist() for _, y in pairs] == [[0, 10, 20, 30], [40, 50, 60, 70], [80, 90]]
    assert [tuple(x.shape) for x, _ in pairs] == [(4, 2), (4, 2), (2, 2)]
    assert (len(batches), batches.samples) == (3, 10)


def test_drop_last_leaves_out_the_partial_batch_alone() -> None:
    batches = Batches(*numbered(10), batch_size=4, drop_last=True)
    assert labels_of(batches) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert len(batches) == 2
    assert len(Batches(*numbered(8), batch_size=4, drop_last=True)) == 2


def test_unshuffled_batches_are_contiguous_views_of_the_data() -> None:
    x, y = numbered(10)
    for b, (x_batch, y_batch) in enumerate(Batches(x, y, batch_size=4)):
        assert x_batch.data_ptr() == x[4 * b].data_ptr()
        assert y_batch.data_ptr() == y[4 * b].data_ptr()
        assert x_batch.is_contiguous()


def test_shuffled_epochs_hold_every_sample_once_with_its_own_label_in_orders_that_differ() -> None:
    batches = Batches(*numbered(50), batch_size=8, shuffle=True)
    epochs = [list(batches) for _ in range(3)]
    orders = [labels_of(epoch) for epoch in epochs]
    assert all(sorted(order) == list(range(0, 500, 10)) for order in orders)
    assert len({tuple(order) for order in [*orders, sorted(orders[0])]}) == 4
    for x, y in epochs[0]:
        assert torch.equal(10 * x[:, 0], y.float())


def test_iterating_gives_the_numbered_epochs_and_asking_for_one_does_not_move_them() -> None:
    batches = Batches(*numbered(20), batch_size=6, shuffle=True, seed=3)
    first = labels_of(batches)
    assert first == labels_of(batches.epoch(0))
    assert labels_of(batches.epoch(7)) == labels_of(batches.epoch(7)) != first
    assert labels_of(batches) == labels_of(batches.epoch(1)) != first


def test_an_epoch_begins_at_iter_and_two_of_them_may_run_at_once() -> None:
    batches = Batches(*numbered(20), batch_size=20, shuffle=True)
    first, second = iter(batches), iter(batches)
    assert labels_of(second) == labels_of(batches.epoch(1))
    assert labels_of(first) == labels_of(batches.epoch(0))


def test_one_seed_gives_one_order_and_neighbouring_seeds_share_no_epoch() -> None:
    batches = Batches(*numbered(30), batch_size=10, shuffle=True)
    orders = {tuple(labels_of(batches.with_seed(s).epoch(k))) for s in (-1, 0, 1, 2) for k in range(4)}
    assert len(orders) == 16
    assert labels_of(batches.with_seed(5)) == labels_of(Batches(*numbered(30), 10, shuffle=True, seed=5))


@pytest.mark.usefixtures("random_state")
def test_shuffling_neither_moves_nor_reads_the_global_random_state() -> None:
    batches = Batches(*numbered(30), batch_size=10, shuffle=True)
    order = labels_of(batches.epoch(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        assert labels_of(batches.part(0, 1).epoch(0)) == order


def test_x_and_y_may_be_tuples_and_dicts_of_tensors() -> None:
    a, b = numbered(10)
    x_only = Batches({"a": a, "b": b}, (b, -b), batch_size=4, shuffle=True)
    for x, y in x_only:
        assert isinstance(x, dict)
        assert isinstance(y, tuple)
        assert torch.equal(x["b"], y[0])
        assert torch.equal(y[0], -y[1])
        assert torch.equal(10 * x["a"][:, 0], y[0].float())
    assert sorted(labels_of((x, y[0]) for x, y in x_only.take(3))) == [0, 10, 20]


def test_take_gives_the_first_samples() -> None:
    batches = Batches(*numbered(10), batch_size=4).take(5)
    assert labels_of(batches) == [0, 10, 20, 30, 40]
    assert batches.samples == 5


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_parts_are_strided_disjoint_and_together_all_samples(n: int) -> None:
    parts = [Batches(*numbered(10), batch_size=4).part(i, n) for i in range(n)]
    assert [labels_of(part) for part in parts] == [list(range(0, 100, 10))[i::n] for i in range(n)]


def test_parts_shuffle_each_in_its_own_way() -> None:
    batches = Batches(*numbered(90), batch_size=90, shuffle=True)
    positions = [[label // 30 for label in labels_of(batches.part(i, 3))] for i in range(3)]
    assert len({tuple(order) for order in positions}) == 3
    assert labels_of(batches.part(1, 3)) == labels_of(batches.part(1, 3))


def test_a_part_that_is_shipped_leaves_the_other_parts_at_home() -> None:
    part = Batches(torch.zeros(1000, 100), torch.zeros(1000), batch_size=10).part(3, 100)
    assert len(pickle.dumps(part)) < 10_000  # its 10 samples take 4 kB, all of them 400 kB


def test_with_batch_size_keeps_everything_else() -> None:
    batches = Batches(*numbered(10), batch_size=4, shuffle=True, seed=2, drop_last=True).with_batch_size(5)
    assert (batches.batch_size, batches.shuffle, batches.seed, batches.drop_last) == (5, True, 2, True)
    assert [len(y) for _, y in batches] == [5, 5]


X, Y = numbered(10)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Batches(X, Y[:9], 4), ["x has 10", "y has 9"]),
        (lambda: Batches((X, X[:7]), Y, 4), ["x[0] has 10", "x[1] has 7"]),
        (lambda: Batches(X, {"a": Y, "b": Y[:3]}, 4), ["y['b'] has 3"]),
        (lambda: Batches(X[:0], Y[:0], 4), ["no samples", "0"]),
        (lambda: Batches((), (), 4), ["x is an empty tuple", "no samples"]),
        (lambda: Batches(X, {}, 4), ["y is an empty dict", "no samples"]),
        (lambda: Batches(X, Y, 0), ["batch_size", "0"]),
        (lambda: Batches(X, Y, "4"), ["batch_size", "'4'"]),
        (lambda: Batches(X, Y, 2.5), ["batch_size is a whole number", "2.5"]),
        (lambda: Batches(X, Y, None), ["batch_size", "None"]),
        (lambda: Batches(X, Y, 4, seed="a"), ["seed is a whole number", "'a'"]),
        (lambda: Batches(X, Y, 4, first_epoch=-1), ["first_epoch", "-1"]),
        (lambda: Batches(X, Y, 4).with_seed(1.5), ["seed is a whole number", "1.5"]),
        (lambda: Batches(X, Y, 11, drop_last=True), ["11", "10 samples"]),
        (lambda: Batches(X.numpy(), Y, 4), ["x must be a tensor", "ndarray"]),
        (lambda: Batches(X, torch.tensor(1), 4), ["y must be a tensor", "without dimensions"]),
        (lambda: Batches(X, Y, 4).take(0), ["0 of 10"]),
        (lambda: Batches(X, Y, 4).take(11), ["11 of 10"]),
        (lambda: Batches(X, Y, 4).take("3"), ["'3' of 10"]),
        (lambda: Batches(X, Y, 4).take(2.0), ["2.0 of 10"]),
        (lambda: Batches(X, Y, 4).part("0", 2), ["part '0' of 2"]),
        (lambda: Batches(X, Y, 4).part(3, 3), ["part 3 of 3"]),
        (lambda: Batches(X, Y, 4).part(-1, 3), ["part -1 of 3"]),
        (lambda: Batches(X, Y, 4).part(0, 11), ["part 0 of 11", "10 samples"]),
        (lambda: Batches(X, Y, 4).epoch(-1), ["-1"]),
        (lambda: Batches(X, Y, 4).epoch("0"), ["counted from 0", "'0'"]),
        (lambda: Batches(X, Y, 4).from_epoch(1.5), ["counted from 0", "1.5"]),
        (lambda: Batches(X, Y, 4).with_batch_size(-2), ["batch_size", "-2"]),
    ],
)
def test_wrong_batches_are_refused_in_a_sentence_with_the_wrong_value(
    make: Callable[[], object], words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_batches_go_on_from_any_epoch() -> None:
    def epochs(batches: Batches, n: int) -> list[list[int]]:
        return [labels_of(batches) for _ in range(n)]

    def fresh() -> Batches:
        return Batches(X, Y, 4, shuffle=True)

    assert epochs(fresh(), 2) + epochs(fresh().from_epoch(2), 2) == epochs(fresh(), 4)
    part = fresh().part(1, 2)
    assert epochs(part, 3)[2:] == epochs(fresh().from_epoch(2).part(1, 2), 1)
    with pytest.raises(DataError, match="epochs are counted from 0, got -1"):
        fresh().from_epoch(-1)


def test_numbers_of_numpy_are_numbers_too() -> None:
    """A seed that was a NumPy integer raised an OverflowError in the first shuffled epoch."""
    plain = Batches(X, Y, 4, shuffle=True, seed=3)
    assert labels_of(Batches(X, Y, np.int64(4), shuffle=True, seed=np.int64(3))) == labels_of(plain)
