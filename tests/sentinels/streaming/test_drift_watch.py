"""Alarms where a stream is predicted worse than before."""

from __future__ import annotations

import random

import pytest
import torch
from tests.support.harness import reports
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import Send
from akkordeon.core.errors import RecipeError
from akkordeon.core.streams.reports import DriftAlarm
from akkordeon.sentinels.streaming.drift_watch import ALARMS_MAX, DriftWatch

ROW = ("gate/0", "gate/1")


class Every:
    """Sees a change with every so many numbers."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, 0

    @property
    def drift_detected(self) -> bool:
        return self.seen % self.n == 0

    def update(self, x: float) -> None:
        self.seen += 1


def alarms_of(drift: ak.Drift, values) -> list[DriftAlarm]:
    watch = DriftWatch("s", drift)
    looks = [list(watch.look({drift.on: value}, i, ROW)) for i, value in enumerate(values, 1)]
    return [alarm for effects in looks for alarm in reports(effects, DriftAlarm)]


def test_a_change_for_the_worse_is_an_alarm_and_one_for_the_better_is_none():
    rises, falls = [0.0] * 90 + [1.0] * 10, [1.0] * 90 + [0.0] * 10
    assert alarms_of(ak.Drift(Every(100)), rises) == [DriftAlarm("s", "loss", 100)]
    assert not alarms_of(ak.Drift(Every(100)), falls)
    assert alarms_of(ak.Drift(Every(100), on="accuracy"), falls) == [DriftAlarm("s", "accuracy", 100)]
    assert not alarms_of(ak.Drift(Every(100), on="accuracy"), rises)
    assert alarms_of(ak.Drift(Every(100), on="error", higher_is_better=False), rises)


def test_worse_is_told_by_what_came_since_the_change_before():
    values = [5.0] * 100 + [1.0] * 90 + [2.0] * 10
    assert [alarm.examples for alarm in alarms_of(ak.Drift(Every(100)), values)] == [200]


@pytest.mark.parametrize(
    ("detector", "options"), [("ADWIN", {}), ("PageHinkley", {}), ("KSWIN", {"alpha": 1e-4, "seed": 0})]
)
def test_detectors_of_river_find_a_planted_change(detector, options):
    drift = pytest.importorskip("river.drift")
    noise = random.Random(0)
    values = [noise.gauss(0.3 if i < 1000 else 0.9, 0.1) for i in range(1500)]
    (first, *_) = alarms_of(ak.Drift(getattr(drift, detector)(**options)), values)
    assert 1000 < first.examples < 1200


@pytest.mark.parametrize(
    ("detector", "options"),
    [("ADWIN", {}), ("PageHinkley", {"threshold": 20}), ("PageHinkley", {"threshold": 20, "mode": "down"})],
)
def test_detectors_of_river_tell_a_fall_of_accuracy_from_a_rise(detector, options):
    drift = pytest.importorskip("river.drift")
    noise = random.Random(0)
    falls = [noise.gauss(0.9 if i < 1000 else 0.5, 0.1) for i in range(1500)]
    watch = ak.Drift(getattr(drift, detector)(**options), on="accuracy")
    (first, *_) = alarms_of(watch, falls)
    assert 1000 < first.examples < 1200
    assert not alarms_of(watch, [1 - value for value in falls])


def test_the_latest_alarms_are_kept_and_a_detector_is_copied():
    drift = ak.Drift(Every(1))
    watch = DriftWatch("s", drift)
    for i in range(ALARMS_MAX + 50):
        for value in (0.0, 1.0):
            list(watch.look({"loss": value}, i, ROW))
    assert not watch.alarms  # one value after a change says nothing
    assert drift.detector.seen == 0


def changes_at_an_alarm(react) -> list[tuple[str, dict]]:
    watch = DriftWatch("s", ak.Drift(Every(2), react=react))
    effects = [effect for i in (0, 1) for effect in watch.look({"loss": float(i)}, i, ROW)]
    return [(effect.to, effect.message.settings) for effect in effects if isinstance(effect, Send)]


def test_more_learning_is_a_boost_of_all_gates():
    boost = {"boost": (3.0, 100)}
    assert changes_at_an_alarm(ak.MoreLearning(3.0, 100)) == [("gate/0", boost), ("gate/1", boost)]


def test_optimizers_of_all_or_of_chosen_gates_are_reset():
    reset = {"reset_optimizer": True}
    assert changes_at_an_alarm(ak.ResetOptimizers()) == [("gate/0", reset), ("gate/1", reset)]
    assert changes_at_an_alarm(ak.ResetOptimizers(["gate/1"])) == [("gate/1", reset)]


def test_there_may_be_several_reactions_or_none():
    both = changes_at_an_alarm([ak.ResetOptimizers(["gate/0"]), ak.MoreLearning()])
    assert [gate for gate, _ in both] == ["gate/0", "gate/0", "gate/1"]
    assert not changes_at_an_alarm(())


def test_alarms_go_on_in_a_checkpoint_and_the_detector_begins_anew():
    watch = DriftWatch("s", ak.Drift(Every(4)))
    for i, value in enumerate((0.0, 0.0, 0.0, 1.0), 1):
        list(watch.look({"loss": value}, i, ROW))
    again = DriftWatch("s", ak.Drift(Every(4)))
    again.go_on_from(watch.state())
    assert again.alarms == watch.alarms == (4,)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: ak.Drift(Every), "a detector has update"),
        (lambda: ak.Drift(3), "a detector has update.x. and drift_detected, as river's ADWIN.. has; got 3"),
        (lambda: stream(ak.Drift(Every(1), on="f1")), "watched on 'f1', but the scores are loss, accuracy"),
        (lambda: ak.Drift(Every(1), react="more"), "reactions to drift are .*, got 'm'"),
        (lambda: ak.MoreLearning(factor=0), "factor is above 0, got 0"),
        (lambda: ak.MoreLearning(factor=float("inf")), "factor is finite, got inf"),
        (lambda: ak.MoreLearning(updates=0), "updates is at least 1, got 0"),
        (lambda: stream("ADWIN"), "drift is a Drift, as in Drift.ADWIN..., got 'ADWIN'"),
    ],
)
def test_what_could_only_fail_later_is_refused(wrong, sentence):
    with pytest.raises(RecipeError, match=sentence):
        wrong()


def stream(drift):
    source = torch.ones(1, 3), torch.tensor([1])
    return ak.Sentinel.stream(source, F.cross_entropy, scores={"accuracy": ak.accuracy}, drift=drift)


def test_a_part_of_a_collection_that_is_not_there_is_named():
    watch = DriftWatch("s", ak.Drift(Every(1), on="of/f1"))
    with pytest.raises(RecipeError, match="watched on 'of/f1', but the scores are loss, of/recall"):
        list(watch.look({"loss": 1.0, "of/recall": 0.5}, 1, ROW))
