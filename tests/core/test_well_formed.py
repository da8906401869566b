"""What a message may hold, before anybody handles it."""

from __future__ import annotations

import torch

from akkordeon.core.messages import Batch, Forward
from akkordeon.core.well_formed import malformed


def test_a_field_that_is_not_there_is_named():
    message = object.__new__(Forward)  # as bytes make one that somebody else wrote
    object.__setattr__(message, "batch", Batch("s", 0))
    assert malformed(message) == "the payload of its Forward is none: it is not there"


def test_a_few_lists_that_are_millions_of_parts_are_refused_without_going_through_them():
    payload = torch.ones(1)
    for _ in range(30):
        payload = [payload, payload]
    assert "more than 10000 things" in (malformed(Forward(Batch("s", 0), payload)) or "")


def test_a_list_that_holds_itself_is_refused():
    payload: list = []
    payload.append(payload)
    assert "containers deep" in (malformed(Forward(Batch("s", 0), payload)) or "")
