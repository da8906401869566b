"""The mailbox: by class, in order within a class, and evaluation never starves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akkordeon.core.messages import Backward, Batch, CutId, Evaluate, Forget, Forward, Kind, Message
from akkordeon.engines.mailbox import Mailbox

CUT = CutId("v", 0)


def message(kind: Kind, number: int) -> Message:
    batch = Batch("s", number)
    return {
        Kind.CONTROL: Forget("s", number),
        Kind.BACKWARD: Backward(batch, None),
        Kind.FORWARD: Forward(batch, ()),
        Kind.EVALUATION: Evaluate(batch, (), CUT),
    }[kind]


def test_control_comes_before_backward_before_forward_before_evaluation():
    mailbox = Mailbox()
    for kind in (Kind.EVALUATION, Kind.FORWARD, Kind.BACKWARD, Kind.CONTROL):
        mailbox.put(message(kind, 0))
    assert [mailbox.take().kind for _ in range(4)] == sorted(Kind)


def test_an_empty_mailbox_is_false_and_gives_nothing():
    mailbox = Mailbox()
    assert not mailbox
    assert len(mailbox) == 0
    with pytest.raises(IndexError):
        mailbox.take()


@pytest.mark.parametrize("kind", Kind)
def test_one_message_of_any_class_makes_it_true(kind):
    mailbox = Mailbox()
    mailbox.put(message(kind, 0))
    assert mailbox
    assert len(mailbox) == 1
    mailbox.take()
    assert not mailbox


@given(st.lists(st.one_of(st.sampled_from(Kind), st.none()), max_size=200), st.integers(1, 10))
def test_every_message_comes_out_once_and_in_the_order_of_its_class(steps, turn):
    mailbox, put, taken = Mailbox(turn), [], []
    for number, kind in enumerate(steps):
        if kind is not None:
            put.append(message(kind, number))
            mailbox.put(put[-1])
        elif mailbox:
            taken.append(mailbox.take())
    assert len(mailbox) == len(put) - len(taken)
    taken += [mailbox.take() for _ in range(len(mailbox))]
    for kind in Kind:
        assert [m for m in taken if m.kind is kind] == [m for m in put if m.kind is kind]


@given(st.lists(st.sampled_from(list(Kind)[:3]), max_size=200), st.integers(1, 10))
def test_evaluation_gets_its_guaranteed_turn_and_no_other_while_there_is_training(others, turn):
    mailbox, waited = Mailbox(turn), 0
    mailbox.put(message(Kind.EVALUATION, 0))
    for number, kind in enumerate(others):
        mailbox.put(message(kind, number))
        if mailbox.take().kind is Kind.EVALUATION:
            assert waited == turn - 1
            waited = 0
            mailbox.put(message(Kind.EVALUATION, number))
        else:
            waited += 1
            assert waited < turn


@given(st.lists(st.sampled_from(Kind), min_size=1, max_size=60))
def test_out_of_turn_the_lowest_class_comes_first(kinds):
    mailbox = Mailbox(turn=1000)
    for number, kind in enumerate(kinds):
        mailbox.put(message(kind, number))
    assert [mailbox.take().kind for _ in kinds] == sorted(kinds)


@given(st.lists(st.sampled_from("abc"), max_size=60))
def test_in_a_fair_one_sentinels_take_turns_and_each_keeps_its_order(senders):
    mailbox = Mailbox(fair=True)
    for number, sender in enumerate(senders):
        mailbox.put(Forward(Batch(sender, number), ()))
    taken = [mailbox.take().batch for _ in range(len(mailbox))]
    assert not mailbox
    for sender in "abc":
        assert [b.number for b in taken if b.sentinel == sender] == [
            n for n, s in enumerate(senders) if s == sender
        ]
    for place, batch in enumerate(taken):  # nobody has a second turn while somebody waits for the first
        left = {b.sentinel for b in taken[place:]}
        turn = [b.sentinel for b in taken[place : place + len(left)]]
        assert sorted(turn) == sorted(left)
        assert batch.sentinel in left


def test_one_that_floods_a_gate_takes_no_more_of_it_than_others():
    mailbox, served = Mailbox(fair=True), []
    for number in range(1000):
        mailbox.put(Forward(Batch("flood", number), ()))
    for number in range(50):
        mailbox.put(Forward(Batch("modest", number), ()))
        served.append(mailbox.take().batch.sentinel)
    assert served.count("modest") >= 24
