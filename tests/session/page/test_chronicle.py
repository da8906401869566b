"""What becomes of records: points of curves, lines of the log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from akkordeon.core.errors import SentinelFailedError
from akkordeon.core.reports import (
    ActorFailed,
    ActorLost,
    BatchRefused,
    EpochDone,
    GateRestarted,
    GateStatus,
    RoundDone,
    SentinelRestarted,
    TrainingProgress,
)
from akkordeon.core.streams.reports import DriftAlarm, StreamReport
from akkordeon.core.surgery.reports import Changed, RowChanged
from akkordeon.sentinels.roles import PREDICT, TRAIN
from akkordeon.session.page.chronicle import Chronicle
from akkordeon.session.page.history import History


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def written():
    clock = Clock()
    history = History(now_s=clock)
    return SimpleNamespace(clock=clock, history=history, chronicle=Chronicle(history))


def epoch(loss, number=1):
    return EpochDone("train", number, loss, {"accuracy": 0.5}, 8, 1.0, 0.0, 0)


def progress(loss):
    return TrainingProgress("train", 1, loss, {}, 1, 8, 1.0, 0.0, 0)


def log_of(written):
    return [(entry["kind"], entry["who"], entry["text"]) for entry in written.history.since(0).log]


def losses_of(written, who="train"):
    return [value for _, value in written.history.since(0).curves[who]["loss"]]


def test_epochs_rounds_and_streams_become_points(written):
    written.chronicle.tell(epoch(0.5))
    written.chronicle.tell(RoundDone("validate", "validate", 1, 0.75, {"accuracy": 0.25}, 8, 1.0, 3))
    written.chronicle.tell(StreamReport("stream", {"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}, 5, 0))
    curves = written.history.since(0).curves
    assert {who: {m: [v for _, v in points] for m, points in of.items()} for who, of in curves.items()} == {
        "train": {"loss": [0.5], "accuracy": [0.5]},
        "validate": {"loss": [0.75], "accuracy": [0.25]},
        "stream": {"loss": [2.0]},
    }


def test_the_mean_of_an_epoch_is_no_point_where_it_was_told_of_from_within(written):
    for record in (progress(3.0), progress(1.0), epoch(2.0), epoch(0.5, 2)):
        written.chronicle.tell(record)
    assert losses_of(written) == [3.0, 1.0, 0.5]


def test_who_comes_late_sees_epochs_where_they_were_though_the_first_are_forgotten(written):
    kept = [epoch(0.5, 1001), epoch(0.25, 1002)]  # each of a second
    written.chronicle.before([SimpleNamespace(epochs=kept, rounds=[], seconds=1002.0)])
    assert written.history.since(0).curves["train"]["loss"] == [[1001.0, 0.5], [1002.0, 0.25]]


def test_what_came_and_went_and_failed_has_a_line_each_time(written):
    train = SimpleNamespace(
        role=TRAIN, name="train", address="sentinel/train#1", ended=False, error=None, stopped=False,
        _done_in_words="2 of 2 epochs",
    )  # fmt: skip
    asked = SimpleNamespace(
        **{**vars(train), "role": PREDICT, "name": "predict", "address": "sentinel/predict#1"}
    )
    written.chronicle.see([train, asked])
    written.chronicle.see([train])
    train.ended = True
    written.chronicle.see([train])
    again = SimpleNamespace(
        **{**vars(train), "address": "sentinel/train#2", "error": SentinelFailedError("broke")}
    )
    written.chronicle.see([again])
    assert log_of(written) == [
        ("came", "train", "came to train"),
        ("went", "train", "ended, after 2 of 2 epochs"),
        ("came", "train", "came to train"),
        ("failed", "train", "failed: broke"),
    ]


def test_refusals_of_one_kind_have_a_line_now_and_then_and_are_counted(written):
    for number in range(10):
        written.chronicle.tell(BatchRefused("train", number, "gate/1", "input", "it is not finite"))
    written.chronicle.tell(BatchRefused("train", 1, "gate/0", "input", "it is not finite"))
    written.clock.now_s += 60
    written.chronicle.tell(BatchRefused("train", 11, "gate/1", "input", "it is not finite"))
    assert log_of(written) == [
        ("refused", "gate/1", "refused a batch of train: it is not finite"),
        ("refused", "gate/0", "refused a batch of train: it is not finite"),
        ("refused", "gate/1", "refused a batch of train: it is not finite (9 more like it before)"),
    ]


def test_failures_recoveries_and_changes_have_a_line(written):
    for record in (
        ActorFailed("gate/0", "Backward", RuntimeError("blew")),
        ActorFailed("sentinel/train#1", "Forward", RuntimeError("blew")),  # of which its end tells
        ActorLost("gate/1", "its process died"),
        GateRestarted("gate/1", "is lost", 1, 9, 7, 10),
        SentinelRestarted("train", "has failed", 1),
        RowChanged(("gate/0", "gate/2"), ("gate/2",), ("gate/1",)),
        Changed("gate/0", {"lr": 0.5, "frozen": True}, 3),
        Changed("gate/0", {"lr": -1.0}, 3, ValueError("below 0")),
        DriftAlarm("stream", "loss", 40),
        GateStatus(1, "gate/0", "gate/0", 0, 3, 0, 0, {}, {}),
    ):
        written.chronicle.tell(record)
    assert log_of(written) == [
        ("failed", "gate/0", "failed on Backward: RuntimeError: blew"),
        ("failed", "gate/1", "is lost: its process died"),
        ("recovered", "gate/1", "is lost; it was made anew, 2 updates back"),
        ("recovered", "train", "has failed; it goes on where it was"),
        ("came", "gate/2", "is part of the row"),
        ("went", "gate/1", "has left the row"),
        ("changed", "gate/0", "was told to learn with lr=0.5, frozen=True"),
        ("changed", "gate/0", "was told to learn with lr=-1.0, which it cannot: ValueError: below 0"),
        ("noted", "stream", "its loss is worse than before, after 40 examples"),
    ]
