"""From records to numbers with a step, which is one axis for all sentinels."""

from __future__ import annotations

from akkordeon.core.diagnostics.diagnosis import Diagnosis
from akkordeon.core.reports import (
    ActorFailed,
    BatchCount,
    BatchRefused,
    EpochDone,
    GateRestarted,
    GateStatus,
    RoundDone,
    SentinelEnded,
    SentinelRestarted,
    ShardStatus,
    TrainingProgress,
    Undelivered,
)
from akkordeon.core.streams.reports import DriftAlarm, LabelCount, StreamReport
from akkordeon.watch.sinks.points import Point, Points


def epoch(trained, sentinel="train", **changes):
    count = BatchCount(trained + 3, trained, 2, 1)
    fields = {"loss": 0.5, "scores": {}, "samples": 80, "seconds": 2.0, "staleness_mean": 1.5}
    return EpochDone(
        sentinel, 1, **{**fields, "staleness_max": 4, **changes}, refused=2, batches_so_far=count
    )


def progress(batches, sentinel="train"):
    return TrainingProgress(sentinel, 1, 0.75, {}, batches, 8 * batches, 1.0, 1.0, 2)


def points_of(*records):
    points = Points()
    return [point for record in records for point in points.of(record)]


def status(**changes):
    told = {"probe": 1, "address": "gate/0", "name": "stem", "index": 0, "version": 9, "stashed": 2}
    return GateStatus(
        **{**told, "pinned": 1, "staleness": {3: 1, 0: 5}, "refused": {"form": 2, "lost": 1}, **changes}
    )


def test_an_epoch_gives_its_numbers_its_scores_and_where_batches_went():
    first, batches = points_of(epoch(20, scores={"accuracy": 0.25}))
    assert first == Point(
        "epoch",
        "train",
        20,
        {"epoch": 1, "loss": 0.5, "samples_per_s": 40.0, "staleness_mean": 1.5, "staleness_max": 4},
        {"accuracy": 0.25},
    )
    assert batches.numbers == {
        "batches_sent": 23,
        "batches_trained": 20,
        "batches_refused": 2,
        "batches_lost": 1,
    }


def test_the_step_is_what_all_sentinels_have_trained_together():
    records = [progress(4), progress(6, "other"), progress(4), epoch(10), epoch(9, "other")]
    assert [p.step for p in points_of(*records) if p.kind != "batches"] == [4, 10, 14, 16, 19]


def test_the_step_never_falls():
    again = SentinelEnded("sentinel/train#1", BatchCount(12, 12, 0, 0))
    records = [epoch(10), again, epoch(5), epoch(10), progress(1, "new")]
    steps = [p.step for p in points_of(*records)]
    assert steps == sorted(steps)
    assert steps[-1] == 12 + 10 + 1


def test_what_a_sentinel_trained_before_it_failed_is_counted_once_where_it_goes_on():
    failed = ActorFailed("reader/train#1", "Read", OSError("gone"))
    ended = SentinelEnded("sentinel/train#1", BatchCount(13, 12, 0, 1))
    again = SentinelRestarted("train", "has failed", 1)
    steps = [p.step for p in points_of(epoch(10), failed, ended, again, progress(3), epoch(20))]
    assert steps == [10, 10, 12, 15, 20, 20]
    steps = [p.step for p in points_of(epoch(10), failed, again, ended, progress(3), epoch(20))]
    assert steps == [10, 10, 12, 15, 20, 20]
    of_its_name = [p.step for p in points_of(epoch(10), failed, ended, epoch(5))]
    assert of_its_name[-1] == 12 + 5


def test_refusals_of_one_sentinel_are_not_those_of_the_next_of_its_name():
    refused = BatchRefused("train", 3, "gate/0", "form", "too wide")
    ended = SentinelEnded("sentinel/train#1", BatchCount(12, 10, 2, 0))
    assert points_of(epoch(10), ended, refused)[-1].numbers == {"batches_refused": 1}


def test_a_round_has_the_step_that_training_had():
    *_, first = points_of(epoch(20), RoundDone("v", "validate", 1, 0.25, {"f": 1.0}, 50, 0.5, 21))
    assert first == Point("round", "v", 20, {"loss": 0.25, "version": 21, "seconds": 0.5}, {"f": 1.0})


def test_a_gate_tells_its_version_and_how_often_each_staleness_was_seen():
    (point,) = points_of(status())
    assert (point.kind, point.of, point.staleness) == ("gate", "gate/0", {0: 5, 3: 1})
    assert point.numbers["version"] == 9
    assert point.numbers["staleness_mean"] == 0.5
    assert point.numbers["messages_refused"] == 3
    assert "pushes" not in point.numbers


def test_a_gate_that_measures_tells_what_it_measured():
    found = Diagnosis(10, 3, 0.9, 0.8, None, None, 1, 1, 1, 1)
    (point,) = points_of(status(diagnosis=found))
    assert point.numbers["cosine_mean"] == 0.9
    assert "correction_mean" not in point.numbers


def test_a_shard_tells_what_is_pushed_and_fetched():
    shard = ShardStatus(1, "shard/0", "shard/0", 0, 5, 0, 0, {}, {}, 7, 8, 900, 1000, 0)
    (point,) = points_of(shard)
    assert {name: point.numbers[name] for name in ("pushes", "fetches", "bytes_in", "bytes_out")} == {
        "pushes": 7,
        "fetches": 8,
        "bytes_in": 900,
        "bytes_out": 1000,
    }


def test_a_stream_tells_its_scores_over_the_window_and_over_all():
    record = StreamReport("s", {"loss": 1.0}, {"loss": 0.5}, {}, 100, 2, LabelCount(waiting=3))
    point, alarm = points_of(record, DriftAlarm("s", "loss", 100))
    assert point.step == 100
    assert dict(point.tagged())["s/window/loss"] == 0.5
    assert dict(point.tagged())["s/overall/loss"] == 1.0
    assert point.numbers["labels_waiting"] == 3
    assert alarm.numbers == {"alarms": 1}


def test_refused_batches_and_gates_made_anew_are_counted():
    refused = BatchRefused("train", 3, "gate/0", "form", "too wide")
    restarted = GateRestarted("gate/1", "raised", 2, 10, 8, 11)
    first, second, gate = points_of(refused, refused, restarted)
    assert [p.numbers["batches_refused"] for p in (first, second)] == [1, 2]
    assert gate.numbers == {"restarts": 2}


def test_a_record_without_numbers_gives_none():
    assert points_of(Undelivered("nobody", None), "no record", None) == []


def test_tags_tell_an_epoch_from_a_part_of_it_and_scores_from_what_we_call_alike():
    window, whole, _ = points_of(progress(1), epoch(2, scores={"loss": 7.0}))
    assert "train/window/loss" in dict(window.tagged())
    tags = dict(whole.tagged())
    assert (tags["train/loss"], tags["train/scores/loss"]) == (0.5, 7.0)


def test_an_infinite_speed_is_none():
    first, _ = points_of(epoch(1, seconds=0.0))
    assert first.numbers["samples_per_s"] == 0.0


def histogram(staleness, **options):
    return Point("gate", "g", 0, {}, {}, staleness).histogram(**options)


def test_a_histogram_has_a_bin_around_each_staleness():
    assert histogram({1: 2, 3: 4}) == ([2, 0, 4], [0.5, 1.5, 2.5, 3.5])
    assert histogram({}) == ([], [])


def test_a_histogram_of_very_many_has_wider_bins_and_loses_none():
    counts, edges = histogram({0: 1, 999: 2, 1001: 3}, bins_max=10)
    assert len(counts) == len(edges) - 1 <= 10
    assert sum(counts) == 6
    assert edges[0] < 0 < edges[1]
    assert edges[-2] < 1001 < edges[-1]
