"""A sentinel that learns from a stream, driven by hand: when it reads, predicts and learns."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import do, reports, sends, stops
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import After
from akkordeon.core.checkpoint_messages import AllRead, GoOn, Locate
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import (
    Attach,
    Backward,
    Batch,
    Close,
    Cut,
    CutId,
    Detach,
    EpochEnd,
    Evaluate,
    Fault,
    Forget,
    Forward,
    Item,
    Pull,
    Refused,
    Release,
    SourceFailed,
)
from akkordeon.core.plain_state import Applied
from akkordeon.core.recovery.messages import ForgetBefore, Restarted
from akkordeon.core.reports import BatchRefused, SentinelEnded
from akkordeon.core.streams.messages import Acknowledge, Kept
from akkordeon.core.streams.reports import StreamReport
from akkordeon.sentinels.streaming.predicting import PREDICTIONS
from akkordeon.sentinels.streaming.streamer import Streamer

ME, ROW, READER = "sentinel/s#1", ("gate/0", "gate/1"), "reader/s#1"
X, Y = torch.ones(1, 3), torch.tensor([1])


def streamer_of(start=None, **recipe) -> Streamer:
    sentinel = ak.Sentinel.stream([], F.cross_entropy, **({"scores": {"accuracy": ak.accuracy}} | recipe))
    return Streamer(ME, "s", ROW, READER, sentinel, start, acknowledges=True)


def pair() -> Item:
    return Item(X, Y)


def at(number: int) -> dict[str, int]:
    """Where the source was after a record."""
    return {"place": number}


def acknowledged(effects: list) -> list[int]:
    """Of which records the source hears."""
    return [place["place"] for message in sends(effects, Acknowledge) for place in message.positions]


def pinned(number: int) -> Cut:
    return Cut(CutId(ME, number), (4, 4))


def predicted(number: int, right: bool = True) -> Evaluate:
    logits = torch.tensor([[0.0, 1.0]]) if right else torch.tensor([[1.0, 0.0]])
    return Evaluate(Batch(ME, PREDICTIONS + number), logits, CutId(ME, number))


def predict(streamer: Streamer, *numbers: int) -> list:
    return [e for n in numbers for e in do(streamer, pinned(n), predicted(n))]


def train(streamer: Streamer, *numbers: int) -> list:
    back = [(Forward(Batch(ME, n), torch.randn(1, 2)), Backward(Batch(ME, n), None, (0, 0))) for n in numbers]
    return do(streamer, *(message for both in back for message in both))


def test_an_example_is_predicted_on_a_cut_then_learned_from_and_only_then_the_next_is_read():
    streamer = streamer_of()
    assert sends(do(streamer, Attach())) == [Pull(1)]
    assert sends(do(streamer, pair())) == [Cut(CutId(ME, 0))]
    (evaluate,) = sends(do(streamer, pinned(0)))
    assert (evaluate.batch, evaluate.cut) == (Batch(ME, PREDICTIONS), CutId(ME, 0))
    *released, forward = sends(do(streamer, predicted(0)))
    assert released == [Release(CutId(ME, 0))] * 2
    assert forward == Forward(Batch(ME, 0), X, 1)
    assert sends(train(streamer, 0), Pull) == [Pull(1)]


def test_no_more_is_read_than_may_be_under_way():
    streamer = streamer_of(in_flight=3)
    assert sends(do(streamer, Attach())) == [Pull(3)]
    assert sends(do(streamer, pair(), pair()), Pull) == []
    predict(streamer, 0, 1)
    assert sends(train(streamer, 0), Pull) == [Pull(1)]
    assert sends(train(streamer, 1), Pull) == [Pull(1)]


def test_an_answer_makes_room_for_no_question_but_is_no_hindrance_to_one():
    streamer = streamer_of()
    do(streamer, Attach())
    assert len(sends(do(streamer, ak.Question("a", X, at(1))), Cut)) == 1
    assert sends(predict(streamer, 0), Pull) == [Pull(1)]  # its label may be the next that comes
    assert len(sends(do(streamer, ak.Answer("a", Y, at(2))), Forward)) == 1
    assert sends(train(streamer, 0)) == [
        Backward(Batch(ME, 0), pytest.approx(torch.zeros(1, 2), abs=1)),
        Acknowledge((at(1), at(2))),
        Pull(1),
    ]


def test_a_label_that_comes_before_the_prediction_is_back_waits_for_it():
    streamer = streamer_of(in_flight=2)
    do(streamer, Attach(), ak.Question("a", X))
    assert sends(do(streamer, ak.Answer("a", Y)), Forward) == []
    assert len(sends(predict(streamer, 0), Forward)) == 1


def test_labels_that_are_due_are_learned_before_the_next_is_predicted():
    streamer = streamer_of(delay=2)
    do(streamer, Attach(), pair())
    predict(streamer, 0)
    do(streamer, pair())
    predict(streamer, 1)
    effects = do(streamer, pair())
    assert (len(sends(effects, Forward)), sends(effects, Cut)) == (1, [])
    assert len(sends(train(streamer, 0), Cut)) == 1


def test_what_is_scored_is_the_prediction_and_not_the_forward_of_training():
    streamer = streamer_of()
    do(streamer, Attach())
    for number, right in enumerate([True, False]):
        do(streamer, pair(), pinned(number), predicted(number, right))
        train(streamer, number)
    (report,) = reports(do(streamer, EpochEnd(last=True)), StreamReport)
    assert report.overall["accuracy"] == report.window["accuracy"] == 0.5
    assert report.examples == 2
    assert report.overall["loss"] == pytest.approx(
        F.cross_entropy(torch.tensor([[0.0, 1], [1, 0]]), Y.repeat(2))
    )


def test_predictions_without_a_label_are_dropped_at_the_bound_and_at_the_end_and_counted():
    streamer = streamer_of(max_waiting=1)
    do(streamer, Attach())
    for number in range(3):
        effects = do(streamer, ak.Question(number, X, at(number)))
        assert acknowledged(effects) == [number - 1] * (number > 0)
        predict(streamer, number)
    effects = do(streamer, ak.Answer(0, Y, at(3)), EpochEnd(last=True))
    assert acknowledged(effects) == [3, 2]
    assert sends(effects, Locate)  # the source is told of these first
    assert not stops(effects)
    effects = do(streamer, AllRead())
    (report,) = reports(effects, StreamReport)
    assert (report.labels.dropped, report.labels.unmatched, report.labels.waiting) == (3, 1, 0)
    assert stops(effects)


@pytest.mark.parametrize("labelled", [False, True])
def test_what_comes_again_is_not_learned_twice_and_acknowledged_once_it_is_done(labelled):
    streamer = streamer_of(in_flight=2)

    def record(number):
        return ak.Labelled("a", X, Y, at(number)) if labelled else ak.Question("a", X, at(number))

    do(streamer, Attach(), record(1))
    assert acknowledged(do(streamer, record(2))) == []
    predict(streamer, 0)
    do(streamer, *[ak.Answer("a", Y, at(3))] * (not labelled))
    assert acknowledged(train(streamer, 0)) == ([1, 2] if labelled else [1, 3, 2])
    effects = do(streamer, record(4))
    assert (acknowledged(effects), sends(effects, Cut)) == ([4], [])
    (report,) = reports(do(streamer, EpochEnd(last=True), AllRead()), StreamReport)
    assert report.labels.duplicates == 2


def test_a_prediction_that_is_refused_is_not_scored_and_its_training_decides():
    streamer = streamer_of()
    do(streamer, Attach(), pair(), pinned(0))
    effects = do(streamer, Refused(Batch(ME, PREDICTIONS), "gate/0", Fault.FORM, "why"))
    assert sends(effects, Release) == [Release(CutId(ME, 0))] * 2
    assert len(sends(effects, Forward)) == 1
    effects = do(streamer, Refused(Batch(ME, 0), "gate/0", Fault.FORM, "why"))
    assert len(reports(effects, BatchRefused)) == 1
    do(streamer, pair())
    predict(streamer, 1)
    train(streamer, 1)
    (report,) = reports(do(streamer, EpochEnd(last=True)), StreamReport)
    assert (report.examples, report.unscored) == (1, 1)
    assert streamer.batches.as_tuple() == (2, 1, 1, 0)


def test_a_source_that_fails_is_told_of_when_all_before_is_learned():
    streamer = streamer_of(in_flight=2)
    do(streamer, Attach(), pair(), SourceFailed(OSError("gone")))
    predict(streamer, 0)
    (again,) = sends(train(streamer, 0), SourceFailed)
    with pytest.raises(OSError, match="gone"):
        do(streamer, again)


def test_detached_it_leaves_no_cut_behind():
    streamer = streamer_of()
    do(streamer, Attach(), pair())
    effects = do(streamer, Detach())
    assert sends(effects, Forget) == [Forget(ME)] * 2
    assert stops(effects)
    (ended,) = reports(effects, SentinelEnded)
    assert ended.cut_short
    assert len(ended.state["stream"]["to_predict"]) == 1


def test_a_prediction_under_way_when_a_gate_was_made_anew_is_made_again():
    streamer = streamer_of()
    do(streamer, Attach(), pair(), pinned(0))
    sent = sends(do(streamer, Restarted("gate/1", None)))
    assert sent == [ForgetBefore(ME, 1)] * 2 + [Cut(CutId(ME, 1))]
    assert sends(do(streamer, predicted(0))) == []
    assert sends(predict(streamer, 1), Forward) == [Forward(Batch(ME, 1), X, 1)]


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"delay": -1}, "delay is at least 0"),
        ({"window": 0}, "window is at least 1"),
        ({"fading": 0.0}, "fading is above 0 and at most 1, got 0.0"),
        ({"max_waiting": 0}, "max_waiting is at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(recipe, why):
    with pytest.raises(RecipeError, match=why):
        streamer_of(**recipe)


def test_a_delay_that_is_no_number_is_refused_with_what_it_is():
    streamer = streamer_of(delay=lambda x, y: 0.5)
    with pytest.raises(RecipeError, match=r"delay gives a whole number .* got 0\.5"):
        do(streamer, Attach(), pair())


def test_one_that_was_killed_without_a_word_begins_its_source_again():
    told = {"number": 7, "position": {"place": [0, 0], "done": []}, "source": None, "batches": [7, 6, 0, 1]}
    told |= {
        "samples_sent": 6,
        "samples_trained": 6,
        "epochs": 0,
        "epoch": None,
        "seconds": 1.0,
        "left": None,
    }
    streamer = streamer_of(start=told)
    assert sends(do(streamer, Attach())) == []
    assert sends(do(streamer, GoOn())) == [Pull(1)]
    do(streamer, pair())
    assert sends(predict(streamer, 0), Forward) == [Forward(Batch(ME, 7), X, 1)]


def test_where_there_are_checkpoints_only_what_is_in_one_is_acknowledged():
    streamer = streamer_of(in_flight=2)
    do(streamer, Attach(), Item(X, Y, at(1)), Item(X, Y, at(2)))
    predict(streamer, 0, 1)
    assert acknowledged(train(streamer, 0)) == [1]
    (located,) = sends(do(streamer, Locate("checkpoint", applied=Applied(1))))
    assert acknowledged(train(streamer, 1)) == []
    do(streamer, Item(X, Y, at(3)))
    predict(streamer, 2)
    assert acknowledged(train(streamer, 2)) == []
    assert acknowledged(do(streamer, Kept(located.state["position"]["place"][1]))) == [2]
    again = streamer_of(located.state, in_flight=2)
    assert acknowledged(do(again, Kept(), Attach())) == [2]


def test_what_is_lost_is_left_to_come_again():
    streamer = streamer_of(in_flight=2)
    do(streamer, Attach(), Kept(), Item(X, Y, at(1)), Item(X, Y, at(2)))
    predict(streamer, 0, 1)
    do(streamer, Refused(Batch(ME, 0), "gate/0", Fault.LOST, "why"))
    train(streamer, 1)
    assert acknowledged(do(streamer, Kept())) == [2]


# A source of somebody's own waited for its next record, and could not be told: detach() had no end.
def test_a_source_that_stalls_holds_up_the_end_for_a_while_only():
    streamer = streamer_of()
    do(streamer, Attach(), Item(X, Y, at(1)))
    predict(streamer, 0)
    assert acknowledged(train(streamer, 0)) == [1]
    effects = do(streamer, Detach())
    assert not stops(effects)
    (later,) = [effect for effect in effects if isinstance(effect, After)]
    assert stops(do(streamer, later.message))


# A stream that failed had the records of its batches under way among those that wait for a checkpoint: the
# next one after its restart acknowledged what no weights have.
@pytest.mark.parametrize("end", [Close(), Detach(drop=True)])
def test_what_is_dropped_with_the_end_is_left_to_come_again(end):
    streamer = streamer_of(in_flight=2)
    do(streamer, Attach(), Kept(), Item(X, Y, at(1)), Item(X, Y, at(2)))
    predict(streamer, 0, 1)
    train(streamer, 0)
    (ended,) = reports(do(streamer, end), SentinelEnded)
    assert ended.batches.as_tuple() == (2, 1, 0, 1)
    assert acknowledged(do(streamer_of(ended.state), Kept())) == [1]


# On a machine with much other work hundreds of examples were trained from the cut of a checkpoint until the
# sentinel was asked where it is. It had the data of the latest alone; the others were acknowledged, and lost.
def test_what_was_trained_too_long_after_a_cut_to_be_kept_is_left_to_come_again():
    streamer = streamer_of()
    do(streamer, Attach(), Kept())
    for number in range(70):
        do(streamer, Item(X, Y, at(number)))
        predict(streamer, number)
        train(streamer, number)
    (located,) = sends(do(streamer, Locate("checkpoint", applied=Applied(2))))
    assert len(located.state["stream"]["to_train"]) == 64
    assert acknowledged(do(streamer, Kept(70))) == [0, 1, *range(6, 70)]
