"""A shadow is tried on the examples of the gates, and takes over if it is better."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import do, reports, sends
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.checkpoint_messages import Locate, Located
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.messages import Attach, Backward, Batch, Cut, CutId, Evaluate, Forward, Item
from akkordeon.core.plain_state import StageState
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.streams.messages import TakeOver
from akkordeon.core.streams.reports import ShadowTried
from akkordeon.core.surgery.messages import Pause, Resume
from akkordeon.sentinels.streaming.predicting import PREDICTIONS
from akkordeon.sentinels.streaming.shadow import Trial
from akkordeon.sentinels.streaming.streamer import Streamer

ME, ROW, READER = "sentinel/s#1", ("gate/0", "gate/1"), "reader/s#1"
X, Y = torch.ones(1, 3), torch.tensor([1])
RIGHT, WRONG = torch.tensor([[0.0, 5.0]]), torch.tensor([[5.0, 0.0]])
STATES = {gate: StageState(0, {}) for gate in ROW}


class Second:
    """Sees a change with the second number."""

    seen = 0

    @property
    def drift_detected(self):
        return self.seen == 2

    def update(self, x):
        self.seen += 1


class Puppet:
    """A shadow that predicts what it is told to."""

    def __init__(self, outputs=RIGHT, error=None):
        self.outputs, self.error, self.learned = outputs, error, 0

    def predict(self, x):
        return self.outputs

    def learn(self, x, y, loss):
        if self.error is not None:
            raise self.error
        self.learned += 1
        return 0.0

    def states(self):
        return STATES


def trial_of(shadow, *at_work, examples=4):
    trial = Trial(ak.Drift(Second()), examples, shadow)
    for loss in at_work:
        trial.add(X, Y, {"loss": loss}, lambda out, y: {"loss": F.cross_entropy(out, y).item()}, None)
    return trial


def test_only_the_later_half_counts():
    assert trial_of(Puppet(), 9.0, 9.0, 0.0, 0.0).successors(ROW) == {}
    assert trial_of(Puppet(WRONG), 0.0, 0.0, 9.0, 9.0).successors(ROW) == STATES
    assert not trial_of(Puppet(), 9.0, 9.0, 9.0).is_over


def test_one_of_other_gates_than_there_are_by_now_is_given_up():
    assert trial_of(Puppet(), 9.0, 9.0, 9.0, 9.0).successors(("gate/0", "gate/2")) == {}


def test_one_whose_gates_refuse_an_example_is_given_up():
    trial = trial_of(Puppet(error=DataError("its loss is nan")), 9.0)
    assert trial.is_over
    assert trial.successors(ROW) == {}


def streamer_with(shadow, in_flight=1) -> Streamer:
    """One with an alarm at the second example, and a shadow for two more."""
    drift = ak.Drift(Second(), react=ak.Shadow(2))
    sentinel = ak.Sentinel.stream([], F.cross_entropy, drift=drift, in_flight=in_flight)
    streamer = Streamer(ME, "s", ROW, READER, sentinel, make_shadow=lambda: shadow)
    do(streamer, Attach())
    predict(streamer, 0, RIGHT)
    for number in (1, 2):
        train(streamer, number - 1)
        predict(streamer, number)
    return streamer


def predict(streamer, number, outputs=WRONG) -> list:
    answer = Evaluate(Batch(ME, PREDICTIONS + number), outputs, CutId(ME, number))
    return do(streamer, Item(X, Y), Cut(CutId(ME, number), (4, 4)), answer)


def train(streamer, number) -> list:
    outputs = torch.zeros(1, 2)
    return do(streamer, Forward(Batch(ME, number), outputs), Backward(Batch(ME, number), None, (0, 0)))


def test_gates_go_on_from_a_better_shadow_before_they_learn_from_the_next_example():
    streamer = streamer_with(Puppet())
    train(streamer, 2)
    effects = predict(streamer, 3)
    (tried,) = reports(effects, ShadowTried)
    assert (tried.examples, tried.takes_over) == (4, True)
    assert sends(effects, TakeOver) == [TakeOver(ME, tuple(STATES.values()))]
    assert not sends(effects, Forward)
    assert sends(do(streamer, TakeOver(ME, ()))) == [Forward(Batch(ME, 3), X, 1)]


def test_one_that_is_no_better_is_told_of_and_changes_nothing():
    streamer = streamer_with(Puppet(WRONG))
    train(streamer, 2)
    effects = predict(streamer, 3)
    assert [tried.takes_over for tried in reports(effects, ShadowTried)] == [False]
    assert [message for message in sends(effects) if isinstance(message, TakeOver | Forward)] == [
        Forward(Batch(ME, 3), X, 1)
    ]


def test_what_is_at_the_gates_comes_back_first():
    streamer = streamer_with(Puppet(), in_flight=2)
    assert not sends(predict(streamer, 3), TakeOver)
    effects = train(streamer, 2)
    assert len(sends(effects, TakeOver)) == 1
    assert not sends(effects, Forward)


def test_it_is_handed_over_again_to_a_gate_that_was_made_anew_meanwhile():
    streamer = streamer_with(Puppet())
    train(streamer, 2)
    predict(streamer, 3)
    assert len(sends(do(streamer, Restarted("gate/0")), TakeOver)) == 1
    assert len(sends(do(streamer, TakeOver(ME, ())), Forward)) == 1


def test_nothing_is_handed_over_to_a_row_of_other_gates():
    streamer = streamer_with(Puppet())
    train(streamer, 2)
    do(streamer, Item(X, Y), Pause())
    predict(streamer, 3)
    effects = do(streamer, Resume(("gate/0", "gate/2")))
    assert not sends(effects, TakeOver)
    assert len(sends(effects, Forward)) == 1


def test_a_checkpoint_waits_until_the_gates_have_taken_over():
    streamer = streamer_with(Puppet())
    train(streamer, 2)
    predict(streamer, 3)
    assert not sends(do(streamer, Locate("keeper", hold=True)), Located)
    assert len(sends(do(streamer, TakeOver(ME, ())), Located)) == 1


def test_a_shadow_is_tried_for_two_examples_at_least():
    with pytest.raises(RecipeError, match="examples is at least 2, got 1"):
        ak.Shadow(1)
