"""Training that came to nothing is told at the end, and the best round is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from akkordeon.core.reports import BatchCount, BatchRefused, EpochDone, RoundDone
from akkordeon.sentinels.roles import TRAIN, VALIDATE, Role
from akkordeon.watch.training_check import TrainingCheck


def session(role: Role = TRAIN, error: Exception | None = None) -> SimpleNamespace:
    """A session with one sentinel that has sent four batches."""
    attachment = SimpleNamespace(name="tdp", role=role, error=error, batches=BatchCount(4, 4, 0, 0))
    return SimpleNamespace(attachments=[attachment])


def told(*records) -> TrainingCheck:
    check = TrainingCheck()
    for record in records:
        check.tell(record)
    return check


def refused(times: int, fault: str = "not_finite") -> list[BatchRefused]:
    return [BatchRefused("tdp", number, "gate/1", fault, "it is so") for number in range(times)]


def epoch(loss: float) -> EpochDone:
    return EpochDone("tdp", 1, loss, {}, 10, 1.0, 0.0, 0)


def test_training_of_which_most_was_refused_has_failed_and_the_last_reason_is_told():
    (complaint,) = told(*refused(3)).complaints(session())
    assert complaint.startswith("training has failed: 3 of 4 batches of tdp were refused; the last: gate/1")
    assert told(*refused(2)).complaints(session()) == []


def test_what_was_refused_because_that_was_asked_for_is_no_failure():
    assert told(*refused(4, "too_stale")).complaints(session()) == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_last_epoch_whose_loss_is_no_number_has_failed(loss):
    assert "no finite number" in told(epoch(1.0), epoch(loss)).complaints(session())[0]
    assert told(epoch(loss), epoch(1.0)).complaints(session()) == []


def test_who_failed_or_does_not_train_is_not_complained_of():
    check = told(*refused(4))
    assert check.complaints(session(error=ValueError())) == []
    assert check.complaints(session(role=VALIDATE)) == []


def test_the_best_round_is_the_last_that_was_the_best():
    rounds = [RoundDone("vdp", "validate", n, 0.5, {}, 10, 1.0, 3, best=n < 3) for n in (1, 2, 3)]
    assert told(*rounds).best is rounds[1]
