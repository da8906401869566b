"""The source that others bring examples to: bounded, in order, with an end."""

from __future__ import annotations

import threading

import pytest
import torch
from tests.support.harness import WAIT_S

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
    first, question, answer = posts
    assert first == (X, Y)
    assert (question.key, answer.key) == ("a", "a")
    assert list(posts) == []


def test_a_reader_waits_for_what_comes():
    posts, read = ak.Posts(), []
    reader = threading.Thread(target=lambda: read.extend(posts))
    reader.start()
    posts.put(X, Y)
    posts.close()
    reader.join(WAIT_S)
    assert len(read) == 1
