"""The source that others bring examples to: bounded, in order, with an end."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.support.harness import WAIT_S
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import RecipeError

X, Y = torch.zeros(1, 2), torch.zeros(1)


def test_there_is_room_for_so_many_and_again_when_one_was_read():
    posts = ak.Posts(max_waiting=2)
    assert [posts.put(X, Y) for _ in range(3)] == [True, True, False]
    assert posts.waiting == 2
    next(iter(posts))
    assert posts.put(X, Y)
    with pytest.raises(RecipeError, match="max_waiting is at least 1"):
        ak.Posts(0)


def test_what_waits_is_given_before_the_end_in_the_order_it_came():
    posts = ak.Posts()
    posts.put(X, Y)
    posts.put(X, Y, "a")
    posts.close()
    assert not posts.put(X, Y)
    assert list(posts) == [(X, Y), ak.Labelled("a", X, Y)]
    assert list(posts) == []


# The reader of a stream that had failed still waited here: of what was posted after the restart it took as
# much as may be in flight, which was lost.
def test_the_latest_reader_has_all_that_comes():
    posts, read = ak.Posts(), ([], [])
    first, second = (threading.Thread(target=lambda own=own: own.extend(posts)) for own in read)
    posts.put(X, Y)
    first.start()
    while posts.waiting:
        assert first.is_alive()
    second.start()
    first.join(WAIT_S)
    posts.put(X, Y)
    posts.close()
    second.join(WAIT_S)
    assert [len(own) for own in read] == [1, 1]


# Of a source without a state what was read before was to be read again, and left out: as many new examples as
# the stream had read were posted, and learned from by nobody.
def test_a_stream_that_goes_on_learns_from_the_first_that_is_posted_then():
    network = ak.Network([ak.Gate(nn.Linear(2, 1), lambda params: torch.optim.SGD(params, lr=0.1))])

    def learning(session, until):
        stream = session.attach(ak.Sentinel.stream(posts := ak.Posts(), nn.functional.mse_loss))
        for _ in range(3):
            posts.put(X, torch.zeros(1, 1))
        while stream.batches.trained < until:
            assert not stream.ended
        return posts, stream

    with ak.run(network, ak.Threads(2)) as session:
        learning(session, 3)
        checkpoint = session.checkpoint(timeout=WAIT_S)
    with ak.run(network, ak.Threads(2), resume=checkpoint) as session:
        posts, stream = learning(session, 0)
        posts.close()
        assert stream.wait(WAIT_S).batches.trained == 6


# The reader of a stream that had failed waited here until another one came: what was posted before the
# restart it gave to nobody, up to as much as may be in flight.
def test_what_is_posted_between_a_failure_and_the_restart_is_learned_from():
    fails = threading.Event()

    def loss(outputs, y):
        if fails.is_set():
            raise ValueError("out of order")
        return nn.functional.mse_loss(outputs, y)

    network = ak.Network([ak.Gate(nn.Linear(2, 1), lambda params: torch.optim.SGD(params, lr=0.1))])
    posts = ak.Posts()
    with ak.run(network, ak.Threads(2)) as session:
        stream = session.attach(ak.Sentinel.stream(posts, loss, in_flight=2))
        fails.set()
        posts.put(X, torch.zeros(1, 1))
        with pytest.raises(ak.AkkordeonError, match="out of order"):
            stream.wait(WAIT_S)
        fails.clear()
        for _ in range(3):
            posts.put(X, torch.zeros(1, 1))
        while posts.waiting == 3:  # the reader of before takes one
            assert stream.ended
        stream.restart()
        posts.close()
        assert stream.wait(WAIT_S).batches.trained == 3


def test_another_reader_begins_behind_the_place_it_is_given():
    posts = ak.Posts()
    for i in range(4):
        posts.put(i, Y)
    reader = iter(posts)
    next(reader)
    place = posts.state_dict()
    next(reader), next(reader)
    posts.load_state_dict(place)
    assert posts.waiting == 3
    assert list(reader) == []
    posts.close()
    assert [x for x, _ in posts] == [1, 2, 3]


def test_the_place_of_another_process_changes_nothing():
    before, posts = ak.Posts(), ak.Posts()
    before.put(X, Y), next(iter(before))
    posts.put(X, Y)
    posts.load_state_dict(before.state_dict())
    posts.close()
    assert list(posts) == [(X, Y)]


def test_a_reader_waits_for_what_comes():
    posts, read = ak.Posts(), []
    reader = threading.Thread(target=lambda: read.extend(posts))
    reader.start()
    posts.put(X, Y)
    posts.close()
    reader.join(WAIT_S)
    assert len(read) == 1
