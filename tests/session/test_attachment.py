"""What a user holds of a sentinel."""

from __future__ import annotations

import pytest
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import SentinelFailedError, SessionError
from akkordeon.core.reports import BatchCount, EpochDone
from akkordeon.sentinels.roles import TRAIN
from akkordeon.session.attachment import Attachment


class GatesAnswer:
    """A session whose gates say what was learned once somebody waits for it."""

    def __init__(self):
        self.restarted = []

    def _wait(self, condition, timeout, what):
        self.restarted[-1]._end()
        assert condition(), what

    def _restart(self, attachment):
        assert attachment.ended


def test_a_sentinel_of_which_gates_are_still_asked_what_they_learned_is_restarted_once_they_have_said():
    """It was said not to have failed, and its siblings of other replicas were not restarted."""
    session, recipe = GatesAnswer(), ak.Sentinel.train([], cross_entropy)
    lost = Attachment("tdp", TRAIN, "sentinel/tdp#1", recipe, ("gate/0",), _session=session)
    lost.error = SentinelFailedError("sentinel/tdp#1 is lost")
    session.restarted.append(lost)
    assert lost.restart() is lost


class ComesBack(GatesAnswer):
    """A session in which it goes on by itself while somebody waits."""

    def _wait(self, condition, timeout, what):
        self.restarted[-1]._begin_again(None)
        assert condition(), what


def test_one_that_goes_on_by_itself_is_not_waited_for_to_its_end_by_who_would_restart_it():
    session, recipe = ComesBack(), ak.Sentinel.train([], cross_entropy, on_failure="restart")
    away = Attachment("tdp", TRAIN, "sentinel/tdp#1", recipe, ("gate/0",), _session=session)
    away.error, away._comes_back = SentinelFailedError("call 3 went wrong"), True
    session.restarted.append(away)
    with pytest.raises(SessionError, match="'tdp' has not failed"):
        away.restart()


def test_of_a_sentinel_that_is_lost_the_counts_of_its_last_epoch_are_known():
    recipe = ak.Sentinel.train([], cross_entropy)
    lost = Attachment("tdp", TRAIN, "sentinel/tdp#1", recipe, ("gate/0",), _session=None)
    counts = BatchCount(sent=7, trained=5, refused=1)
    lost._note(EpochDone("tdp", 1, 0.5, {}, 40, 1.0, 0.0, 0, batches_so_far=counts))
    lost._end()
    assert lost.batches == BatchCount(sent=7, trained=5, refused=1, lost=1)
    assert counts == BatchCount(sent=7, trained=5, refused=1)
