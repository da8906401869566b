"""Views: a new one is one class, and one that fails harms nobody."""

from __future__ import annotations

from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import EpochDone
from akkordeon.watch.follower import BackgroundFollower, Follower
from akkordeon.watch.signals import SignalCounter
from akkordeon.watch.view import FailSafeView, View


class Losses(View):
    """All that a new view has to say."""

    def __init__(self):
        self.seen = []

    def tell(self, record):
        if isinstance(record, EpochDone):
            self.seen.append(record.loss)


def train(session):
    return session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=3))


def test_a_new_view_is_one_class_that_overrides_what_it_cares_for():
    here, beside = Losses(), Losses()
    with ak.run(small_network()) as session:
        follower, background = Follower(session, [here]), BackgroundFollower(session, beside)
        training = train(session)
        with SignalCounter() as signals:
            follower.until_end(signals)
        background.close()
    assert here.seen == beside.seen == [epoch.loss for epoch in training.epochs]


class Breaks(View):
    """A view that fails in its second record."""

    def __init__(self):
        self.told = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.told.append("left")

    def tell(self, record):
        self.told.append(record)
        if len(self.told) == 2:
            raise BrokenPipeError("gone")

    def note(self, sentence):
        self.told.append(sentence)

    def look(self, session, at_once=False):
        self.told.append("looked")


def test_a_view_that_fails_is_told_once_and_left_alone():
    warned, view = [], Breaks()
    with FailSafeView(view, "the screen", warned.append) as careful:
        for record in (1, 2, 3):
            careful.tell(record)
        careful.look(None)
        careful.note("a sentence for people")
    assert view.told == [1, 2]
    assert warned == [
        "the screen has failed and is left out from now on (BrokenPipeError: gone)",
        "a sentence for people",
    ]


def test_a_view_that_fails_where_nobody_listens_harms_nobody():
    def deaf(sentence):
        raise OSError

    careful = FailSafeView(Breaks(), "the screen", deaf)
    for record in (1, 2, 3):
        careful.tell(record)
    careful.note("a sentence")


def test_following_ends_though_its_view_fails(capsys):
    with ak.run(small_network()) as session:
        follower = BackgroundFollower(session, Breaks())
        train(session)
        session.wait(WAIT_S)
        follower.close()
    assert "what shows the session has failed" in capsys.readouterr().err
