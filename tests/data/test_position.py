"""Where somebody is in a source, and how to go on from there."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from akkordeon.core.plain_state import Applied
from akkordeon.data.loaders import private_loader
from akkordeon.data.position import (
    MARKS_KEPT,
    RECENT_MAX,
    Place,
    Places,
    SourceMarks,
    SourcePosition,
    fast_forwarded,
    has_state,
)

PER_EPOCH = 5


def _sent(places, numbers):
    for number in numbers:
        if places.next.number == PER_EPOCH:
            places.end_epoch()
        places.add(number, 2)


@given(st.integers(0, 23), st.sets(st.integers(0, 23)))
def test_what_is_not_done_and_nothing_else_is_read_again(sent, chosen):
    """Also when the run that goes on from there is broken off in its turn."""
    places = Places()
    _sent(places, range(sent))
    again = sorted(number for number in chosen if number < sent)
    position = SourcePosition.from_plain(places.position(again).as_plain())
    every = [Place(*divmod(number, PER_EPOCH)) for number in range(sent)]
    assert [place for place in every if not position.is_done(place)] == [every[number] for number in again]
    assert not position.is_done(places.next)

    second = Places(position, number=sent)
    for k, number in enumerate(again):
        assert second.next == every[number]
        if k == len(again) // 2:
            assert second.position([]).place == every[number]
        second.add(sent + k, 2)
        while second.next.number == PER_EPOCH and second.next < places.next:
            second.end_epoch()
    assert second.next == places.next or not again


def test_batches_are_not_done_that_are_neither_applied_nor_refused():
    places = Places(number=10)
    _sent(places, range(10, 20))
    applied = Applied(16, frozenset({3, 12, 13}))  # 3 is of a run before
    assert places.not_in(applied, 20, refused={13, 18}) == [12, 16, 17, 19]
    assert places.samples_of([12, 16, 99]) == 4


def test_of_a_batch_sent_long_ago_nobody_knows_the_place_and_it_counts_as_done():
    places = Places()
    _sent(places, range(RECENT_MAX + 3))
    assert places.not_in(Applied(0), 5, refused=()) == [3, 4]


def test_a_position_needs_the_latest_state_of_its_source_before_it():
    marks = SourceMarks()
    for number in range(0, 16 * (MARKS_KEPT + 4), 16):
        marks.add(Place(0, number), {"at": number}, earliest=Place(0, number))
    assert marks.before(Place(0, 95)) == {"place": [0, 80], "state": {"at": 80}}
    assert marks.before(Place(0, 2)) is None  # given up
    assert marks.before(Place(1, 0)) == {"place": [0, 176], "state": {"at": 176}}


def test_a_loader_is_moved_on_without_loading_and_a_list_not_at_all():
    data = TensorDataset(torch.arange(10))
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(data, 3, shuffle=True, generator=generator)
    read = private_loader(loader)
    epochs = [[batch[0].tolist() for batch in read] for _ in range(3)]
    assert [batch[0].tolist() for batch in fast_forwarded(private_loader(loader), 2)] == epochs[2]
    batches = [(1, 2)]
    assert fast_forwarded(batches, 7) is batches


def test_another_source_is_read_through_and_draws_nothing_from_the_generator_of_the_process():
    class Drawing:
        epochs = 0

        def __iter__(self):
            self.epochs += 1
            yield torch.randn(1)

    source, state = Drawing(), torch.get_rng_state()
    assert fast_forwarded(source, 3) is source
    assert source.epochs == 3
    assert torch.equal(state, torch.get_rng_state())
    assert not has_state(source)
