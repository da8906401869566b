"""Reports as lines of text."""

from __future__ import annotations

from akkordeon.core.reports import (
    ActorFailed,
    BatchCount,
    BatchRefused,
    EpochDone,
    GateRestarted,
    RoundDone,
    SentinelRestarted,
    TrainingProgress,
    Undelivered,
)
from akkordeon.core.streams.reports import DriftAlarm, LabelCount, StreamReport
from akkordeon.watch.lines import WARNINGS_MAX, LineView, line_of, line_of_stream

EPOCH = EpochDone("tdp", 3, 0.5, {"accuracy": 0.875}, 6000, 0.25, 1.5, 4)
ROUND = RoundDone("vdp", "validate", 2, 0.25, {"accuracy": 0.9375}, 1000, 0.5, 135)


def test_an_epoch_is_a_line_with_all_that_matters():
    assert line_of(EPOCH) == (
        "tdp        epoch    3  loss 0.5000  accuracy 0.8750    0.25 s    24,000 samples/s  τ mean 1.5 max 4"
    )


def test_a_round_is_a_line_with_the_version_it_saw():
    assert line_of(ROUND) == (
        "vdp        round    2  loss 0.2500  accuracy 0.9375    0.50 s     2,000 samples/s  version 135"
    )


def test_refused_batches_and_the_best_round_are_told_in_their_lines():
    assert line_of(EpochDone("tdp", 1, 0.5, {}, 10, 1.0, 0.0, 0, refused=2)).endswith("max 0  refused 2")
    assert line_of(RoundDone("vdp", "validate", 1, 0.5, {}, 10, 1.0, 3, best=True)).endswith("best so far")


def test_progress_within_an_epoch_is_a_line_with_the_batches_it_is_of():
    progress = TrainingProgress("tdp", 3, 0.5, {"accuracy": 0.875}, 1200, 240_000, 10.0, 1.5, 4)
    line = (
        "tdp        epoch    3  loss 0.5000  accuracy 0.8750   10.00 s    24,000 samples/s  "
        "τ mean 1.5 max 4  last 1,200 batches"
    )
    assert line_of(progress) == line
    written = []
    LineView(written.append).tell(progress)
    assert written == [line]


def test_lines_are_written_for_epochs_and_rounds_alone():
    written, warned = [], []
    with LineView(written.append, warned.append) as lines:
        for record in (EPOCH, Undelivered("nobody", None), ROUND, BatchCount()):
            lines.tell(record)
        lines.note("by the way")
    assert written == [line_of(EPOCH), line_of(ROUND)]
    assert warned == ["by the way"]


def test_a_handful_of_refused_batches_is_told_and_the_others_are_counted():
    warned = []
    with LineView(print, warned.append) as lines:
        for number in range(WARNINGS_MAX + 20):
            lines.tell(BatchRefused("tdp", number, "gate/1", "not_finite", "its output is not finite"))
    assert warned[0] == "warning: gate/1 refused batch 0 of tdp: its output is not finite"
    assert warned[WARNINGS_MAX:] == [
        "warning: further refused batches are only counted",
        f"warning: {WARNINGS_MAX + 20} batches were refused in all",
    ]


def test_a_sentinel_that_fails_while_others_go_on_is_told_at_once():
    warned = []
    lines = LineView(print, warned.append)
    lines.tell(ActorFailed("sentinel/tdp#1", "a batch", ValueError("no such label")))
    lines.tell(ActorFailed("gate/1", "a batch", ValueError("ends the session, which says so")))
    assert warned == ["warning: sentinel/tdp#1 has failed; why is told when the others have ended"]


def test_a_gate_that_came_back_is_told_with_what_it_cost():
    warned = []
    LineView(print, warned.append).tell(GateRestarted("gate/1", "is lost: it crashed", 2, 57, 50, 58))
    assert warned == ["warning: gate/1 is lost: it crashed; it was made anew, 7 updates back"]


def test_a_sentinel_that_goes_on_is_told_with_why_it_was_gone():
    warned = []
    LineView(print, warned.append).tell(SentinelRestarted("tdp", "is lost: its process died", 1))
    assert warned == ["warning: tdp is lost: its process died; it goes on where it was"]


def test_a_stream_is_told_with_its_scores_of_late_and_over_all_and_labels_that_are_missing():
    scores = {"loss": 0.5, "accuracy": 0.9}
    report = StreamReport("s", scores, {**scores, "accuracy": 1.0}, scores, 1200, 0, LabelCount(3, 0, 1))
    assert line_of_stream(report) == (
        "s              1,200 predicted, of late  loss 0.5000  accuracy 1.0000,"
        "  over all  loss 0.5000  accuracy 0.9000  waiting 3  unmatched 1"
    )
    told = []
    LineView(told.append).tell(report)
    assert told == [line_of_stream(report)]


def test_an_alarm_for_drift_is_told():
    warned = []
    LineView(print, warned.append).tell(DriftAlarm("s", "accuracy", 1200))
    assert warned == ["warning: s: its accuracy is worse than before, after 1,200 examples"]
