"""Batches and what else can be a source of them: akkordeon.data, batches, sources and loaders."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
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

from akkordeon.core.errors import DataError
from akkordeon.data.batches import Batches
from akkordeon.data.loaders import private_loader
from akkordeon.data.sources import as_batches, gives_new_tensors, is_indexable


def numbered(n: int) -> tuple[Tensor, Tensor]:
    """Sample i is the row (i, i), its label is 10 i."""
    y = torch.arange(n)
    return torch.stack([y, y], 1).float(), 10 * y


def labels_of(batches: Any) -> list[int]:
    return [label for _, y in batches for label in y.tolist()]


# --- Batches -----------------------------------------------------------------------------------------


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


# --- as_batches and is_indexable ---------------------------------------------------------------------


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


# --- private_loader ----------------------------------------------------------------------------------


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


def test_only_sources_that_give_new_tensors_each_time_are_not_copied() -> None:
    surely = [[(X, Y)], Batches(X, Y, 4), DataLoader(NUMBERED, 4)]
    assert all(map(gives_new_tensors, surely))
    perhaps = [
        iter([(X, Y)]),
        DataLoader(NUMBERED, 4, collate_fn=list),
        DataLoader(NUMBERED, batch_size=None),
    ]
    assert not any(map(gives_new_tensors, perhaps))


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
