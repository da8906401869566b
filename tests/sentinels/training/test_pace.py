"""How many batches may be in flight, by schedules and by what is known of the gates."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.sentinels.training.pace import Pace


@given(st.integers(1, 64), st.integers(1, 1000))
def test_a_warm_up_goes_from_one_to_all_and_never_back(in_flight, warm_up):
    pace = Pace(ak.Async(warm_up), in_flight)
    rooms = [pace.room(trained) for trained in range(warm_up + 2)]
    assert rooms == sorted(rooms)
    assert rooms[0] == 1
    assert rooms[warm_up:] == [in_flight] * 2
    assert max(b - a for a, b in pairwise(rooms)) <= -(-in_flight // warm_up)


def test_gradients_are_the_later_the_longer_a_sentinel_has_trained():
    network = small_network(schedule=ak.Async(warm_up=40))
    with ak.run(network, engine=ak.Simulator(seed=1)) as session:
        attached = session.attach(ak.Sentinel.train(batches_of(20), F.cross_entropy, in_flight=5, epochs=4))
        session.wait(timeout=WAIT_S)
        largest = [epoch.staleness_max for epoch in attached.epochs]
    assert largest == sorted(largest)
    assert largest[0] < largest[-1]


def test_a_warm_up_is_a_number_of_batches():
    with pytest.raises(RecipeError, match="warm_up"):
        ak.Async(warm_up=-1)
    with pytest.raises(RecipeError, match="warm_start instead"):
        ak.Downpour(small_network(schedule=ak.Async(5)), replicas=2)


@given(st.integers(1, 9), st.integers(0, 50), st.integers(0, 50))
def test_one_that_lost_count_sends_nothing_until_gates_have_settled(batches, before, after):
    pace = Pace(ak.Flush(batches), 20)
    pace.count_from(before)
    pace.lose()
    assert not pace.is_known
    assert pace.room(before) == 0
    pace.count_from(before)
    assert pace.room(before + after) == batches - after % batches


def test_another_goes_on_counting_where_it_may():
    pace = Pace(ak.Flush(4), 8)
    assert pace.as_plain(0, in_cut=False) is None
    pace.count_from(3)
    assert pace.as_plain(5, in_cut=True) == [3, 4]
    assert pace.as_plain(3, in_cut=True) is None  # gates may have settled after that cut
    for schedule, is_known in ((ak.Flush(4), True), (ak.TwoBuffers(4), True), (ak.Flush(3), False)):
        other = Pace(schedule, 8)
        other.go_on_from([3, 4])
        assert other.is_known is is_known
