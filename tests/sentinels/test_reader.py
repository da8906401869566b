"""The reader, driven by hand: it reads as much as it was asked for, and not more."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from tests.support.harness import do, sends, stops

from akkordeon.core.errors import DataError
from akkordeon.core.messages import Close, EpochEnd, Item, Pull, SourceFailed
from akkordeon.sentinels.reader import Reader


def reader_of(source, epochs=1, **kwargs) -> Reader:
    return Reader("reader/s", "s", lambda k: source(k) if callable(source) else source, epochs, **kwargs)


def pairs(n: int) -> list:
    return [(torch.tensor([float(i)]), i) for i in range(n)]


def told(reader, *messages) -> list:
    """What it sends, in short: the number of an item, "end", "last", or an error."""
    short = []
    for message in sends(do(reader, *messages)):
        if isinstance(message, Item):
            short.append(message.y)
        elif isinstance(message, EpochEnd):
            short.append("last" if message.last else "end")
        else:
            assert isinstance(message, SourceFailed)
            short.append(message.error)
    return short


def test_it_reads_as_many_batches_as_it_was_asked_for_and_no_more():
    read = []

    def source(epoch):
        for pair in pairs(10):
            read.append(pair[1])
            yield pair

    reader = reader_of(source)
    assert read == []
    assert told(reader, Pull(3)) == [0, 1, 2]
    assert read == [0, 1, 2]
    assert told(reader, Pull(1), Pull(1)) == [3, 4]


def test_every_item_goes_to_its_sentinel():
    effects = do(reader_of(pairs(2)), Pull(2))
    assert {effect.to for effect in effects} == {"s"}


def test_epochs_follow_each_other_and_the_last_is_told():
    reader = reader_of(pairs(2), epochs=2)
    assert told(reader, Pull(5)) == [0, 1, "end", 0, 1, "last"]
    assert told(reader, Pull(5)) == []


def test_without_a_limit_it_reads_for_ever():
    assert told(reader_of(pairs(1), epochs=None), Pull(3)) == [0, "end", 0, "end", 0]


def test_each_epoch_is_opened_by_its_number():
    assert told(reader_of(lambda k: [(torch.ones(1), k * 10)], epochs=3), Pull(4)) == [
        0,
        "end",
        10,
        "end",
        20,
        "last",
    ]


def test_what_was_pulled_for_one_round_does_not_open_the_next():
    opened = []

    def source(epoch):
        opened.append(epoch)
        return pairs(2)

    reader = reader_of(source, epochs=None)
    assert told(reader, Pull(2, 0), Pull(1, 0), Pull(1, 0)) == [0, 1, "end"]
    assert opened == [0]
    assert told(reader, Pull(1, 0), Pull(1, 1)) == [0]
    assert opened == [0, 1]


def test_a_source_that_raises_is_told_once_after_what_it_gave():
    def source(epoch):
        yield from pairs(1)
        raise ZeroDivisionError("the disk is gone")

    first, error = told(reader_of(source), Pull(5))
    assert first == 0
    assert isinstance(error, ZeroDivisionError)


def test_a_source_that_cannot_be_opened_is_told_as_well():
    def source(epoch):
        raise FileNotFoundError("no such file")

    (error,) = told(reader_of(source), Pull(1))
    assert isinstance(error, FileNotFoundError)


def test_an_empty_source_and_one_that_is_used_up_are_told_apart():
    (error,) = told(reader_of([]), Pull(1))
    assert str(error) == "its source gave no batches (epoch 1)"
    used_up = iter(pairs(1))
    *_, error = told(reader_of(used_up, epochs=2), Pull(3))
    assert str(error) == (
        "its source gave no batches again; give a source that can be read more than once (epoch 2)"
    )


NO_BATCHES = {
    "a single tensor": (torch.ones(2), "must give (x, y) pairs, got a Tensor as batch 0"),
    "three things": ((1, 2, 3), "must give (x, y) pairs, got a tuple of 3 as batch 0"),
    "text for inputs": (
        ("x", 1),
        "inputs of batch 0 cannot travel: a payload is a tensor, or a tuple, list or dict",
    ),
    "text in inputs": ((["x"], 1), "inputs of batch 0 cannot travel: a payload holds tensors alone; got str"),
    "nothing for inputs": (((), 1), "inputs of batch 0 are a tuple of 0; there is no tensor in them"),
}


@pytest.mark.parametrize("what", NO_BATCHES)
def test_what_is_no_batch_is_told_by_its_number(what):
    item, sentence = NO_BATCHES[what]
    (error,) = told(reader_of([item]), Pull(1))
    assert isinstance(error, DataError)
    assert sentence in str(error)


def test_unlabelled_items_are_inputs_alone_in_any_form():
    x = torch.ones(1)
    reader = reader_of([x, [x, x], {"a": x}], labelled=False)
    items = sends(do(reader, Pull(3)), Item)
    assert [type(item.x) for item in items] == [torch.Tensor, list, dict]
    assert all(item.y is None for item in items)


def test_closing_lets_go_of_the_source_and_stops():
    closed = []

    def source(epoch):
        try:
            yield from pairs(5)
        finally:
            closed.append(True)

    reader = reader_of(source)
    do(reader, Pull(1))
    assert stops(do(reader, Close()))
    assert closed == [True]


# ── batches of other forms, and of arrays that are filled again ──────────────────────────────────────


def test_split_makes_pairs_of_batches_of_another_form():
    source = [{"input": torch.ones(2), "label": 7}, {"input": torch.zeros(2), "label": 8}]
    reader = reader_of(source, split=lambda batch: (batch["input"], batch["label"]))
    assert told(reader, Pull(2)) == [7, 8]


@pytest.mark.parametrize(
    ("split", "why"),
    [
        (None, "must give .* pairs, got a dict as batch 0; for batches of another form give split="),
        (lambda batch: batch["input"], r"split must give a pair \(x, y\), got a Tensor as batch 0"),
    ],
)
def test_what_is_no_pair_is_refused_with_what_to_do(split, why):
    reader = reader_of([{"input": torch.ones(2), "label": 7}], split=split)
    (error,) = told(reader, Pull(1))
    assert isinstance(error, DataError)
    assert re.search(why, str(error))


def test_an_error_in_split_is_an_error_of_the_source():
    (error,) = told(reader_of([{}], split=lambda batch: batch["x"]), Pull(1))
    assert isinstance(error, KeyError)


def test_a_stop_iteration_in_split_is_an_error_and_not_the_end_of_the_epoch():
    def first_of(batch):
        return next(iter(batch))

    pair = (torch.ones(2), 7)
    given = told(reader_of([[pair], [], [pair]], split=first_of), Pull(3))
    assert given[0] == 7
    assert isinstance(given[1], StopIteration)
    assert len(given) == 2


def test_batches_are_copied_where_the_source_may_fill_its_arrays_again():
    x, y, more = torch.zeros(2), np.zeros(2), torch.zeros(2)

    def source(epoch):
        for i in (1, 2):
            x.fill_(i), y.fill(i), more.fill_(i)
            yield x, {"y": y, "more": [more, "text"]}

    first, second = sends(do(reader_of(source, copies=True), Pull(2)))
    assert (first.x.tolist(), second.x.tolist()) == ([1, 1], [2, 2])
    assert first.y["y"].tolist() == first.y["more"][0].tolist() == [1, 1]
    assert first.y["more"][1] == "text"
