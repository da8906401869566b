"""Messages are frozen, slotted, of one class, and validated."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from akkordeon.core import messages, shard_messages
from akkordeon.core.errors import DataError, ProtocolError, explain
from akkordeon.core.messages import (
    Attach,
    Backward,
    Batch,
    Close,
    Cut,
    CutId,
    Detach,
    Due,
    EpochEnd,
    Evaluate,
    Export,
    Exported,
    Fault,
    Forget,
    Forward,
    Item,
    Kind,
    Message,
    Probe,
    Pull,
    Refused,
    Release,
    SourceFailed,
    Tick,
    Watch,
    batch_of,
    describe,
)

BATCH, CUT, X = Batch("sentinel/tdp#1", 7), CutId("sentinel/vdp#1", 3), torch.ones(2)

OF_CLASS = {
    Kind.CONTROL: [
        Refused(BATCH, "gate/1", Fault.FORM, "why"),
        Refused(BATCH, "gate/1", Fault.RAISED, "why", ValueError("why")),
        Forget("sentinel/tdp#1", 7),
        Exported(CUT, "gate/1", {"weight": X}),
        Release(CUT),
        Pull(2, 0),
        Attach(),
        Detach(drop=True),
        Due(last=True),
        Tick(),
        Watch("sentinel/vdp#1", 10),
        Probe(1),
        Close(),
    ],
    Kind.BACKWARD: [Backward(BATCH, X, (1, 0)), Cut(CUT, (4,))],
    Kind.FORWARD: [Forward(BATCH, X), Item(X, X), EpochEnd(last=True), SourceFailed(ValueError())],
    Kind.EVALUATION: [Evaluate(BATCH, X, CUT), Export(CUT)],
}
EVERY = [message for of_class in OF_CLASS.values() for message in of_class]


THERE = [
    kind
    for file in (messages, shard_messages)
    for kind in vars(file).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind.__module__ == file.__name__
]


@pytest.mark.parametrize("kind", THERE, ids=lambda kind: kind.__name__)
def test_every_message_there_is_is_frozen_slotted_and_of_one_class(kind):
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    assert isinstance(kind.kind, Kind)


def test_messages_are_handed_out_by_their_class():
    for kind, of_class in OF_CLASS.items():
        assert all(message.kind is kind for message in of_class)


@pytest.mark.parametrize("message", EVERY, ids=lambda m: type(m).__name__)
def test_no_message_can_be_changed_or_given_anything_more(message):
    assert not hasattr(message, "__dict__")
    for name in (*(field.name for field in fields(message)), "kind", "more"):
        # From CPython 3.11's slotted and frozen dataclasses comes a TypeError for what is no field.
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(message, name, 1)


@pytest.mark.parametrize("message", EVERY, ids=lambda m: type(m).__name__)
def test_every_message_can_be_copied_and_pickled(message):
    names = [field.name for field in fields(message) if field.name != "error"]  # errors are not comparable
    for twin in (copy.copy(message), pickle.loads(pickle.dumps(message))):
        assert type(twin) is type(message)
        assert repr([getattr(twin, name) for name in names]) == repr(
            [getattr(message, name) for name in names]
        )


def test_a_refusal_without_a_reason_and_a_pull_of_nothing_are_refused():
    with pytest.raises(ProtocolError, match="without a reason"):
        Refused(BATCH, "gate/1", Fault.FORM, "")
    with pytest.raises(ProtocolError, match="at least one batch, got 0"):
        Pull(0)


def test_messages_are_described_by_their_batch_or_cut():
    assert describe(Forward(BATCH, X)) == "Forward of batch 7 of sentinel/tdp#1"
    assert describe(Cut(CUT)) == "Cut 3 of sentinel/vdp#1"
    assert describe(Close()) == "Close"
    assert describe(Pull(1)) == describe(SourceFailed(ValueError())) == "reading"
    assert describe(EpochEnd(last=True)) == "the end of its source"


def test_a_message_says_which_batch_it_is_about():
    assert batch_of(Forward(BATCH, X)) == BATCH
    assert batch_of(Cut(CUT)) is None
    assert batch_of(Close()) is None


def test_errors_are_explained_in_one_line_with_their_class_where_it_is_not_ours():
    assert explain(DataError("too\n  few")) == "too few"
    assert explain(ValueError("a  b\nc")) == "ValueError: a b c"
    assert explain(KeyError()) == "KeyError"

    class SpeechlessError(Exception):
        def __str__(self):
            raise ZeroDivisionError

    assert explain(SpeechlessError()) == "SpeechlessError: its text cannot be had: ZeroDivisionError"
