"""Schedules look as they are drawn, and their bubbles are what was published."""

from __future__ import annotations

import inspect

import pytest
from tests.support.timetables import bubble, draw

from akkordeon.experiments.schedules.timetable import (
    Op,
    all_reduce_s,
    gpipe,
    one_device,
    one_f_one_b,
    timetable,
)


def in_ticks(schedule):
    return draw(timetable(schedule, lambda op, now_s: 1.0))


def drawn(function):
    """The timetable in a function's docstring."""
    text = inspect.getdoc(function).partition("::\n\n")[2]
    return "\n".join(line.strip() for line in text.splitlines())


def without_idle_ends(picture):
    return [line.rstrip(" .") for line in picture.splitlines()]


@pytest.mark.parametrize(
    ("function", "stages", "micros"), [(gpipe, 3, 4), (one_f_one_b, 3, 4), (one_device, 3, 2)]
)
def test_a_schedule_looks_as_its_docstring_draws_it(function, stages, micros):
    assert without_idle_ends(in_ticks(function(stages, micros))) == without_idle_ends(drawn(function))


def test_one_f_one_b_with_two_stages_and_three_micro_batches():
    assert without_idle_ends(in_ticks(one_f_one_b(2, 3))) == [
        "0   F0 F1 .  B0 F2 B1 .  B2 U",
        "1   .  F0 B0 F1 B1 F2 B2 U",
    ]


@pytest.mark.parametrize("function", [gpipe, one_f_one_b])
@pytest.mark.parametrize("stages", [2, 4, 8, 16])
@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("backward_s", [1.0, 2.0, 0.3])
def test_the_bubble_is_the_published_one(function, stages, times, backward_s):
    micros = times * stages
    schedule = [[op for op in device if op.what != "U"] for device in function(stages, micros)]
    slots = timetable(schedule, lambda op, now_s: {"F": 1.0, "B": backward_s}[op.what])
    assert bubble(slots) == pytest.approx((stages - 1) / (micros + stages - 1), abs=1e-9)


@pytest.mark.parametrize("function", [gpipe, one_f_one_b, one_device])
@pytest.mark.parametrize(("stages", "micros"), [(1, 1), (1, 5), (4, 1), (4, 3), (5, 9)])
def test_everything_happens_once_and_after_what_it_needs(function, stages, micros):
    slots = timetable(function(stages, micros), lambda op, now_s: 1.0 + op.stage / 10)
    ends_s = {slot.op: slot.end_s for slot in slots}
    assert len(ends_s) == len(slots) == stages * (2 * micros + 1)
    for slot in slots:
        what, stage, micro = slot.op
        if what == "F" and stage:
            assert slot.begin_s >= ends_s[Op("F", stage - 1, micro)]
        if what == "B":
            assert slot.begin_s >= ends_s[Op("F", stage, micro)]
        if what == "B" and stage + 1 < stages:
            assert slot.begin_s >= ends_s[Op("B", stage + 1, micro)]


def test_one_f_one_b_keeps_as_few_activations_as_it_has_stages_left():
    for k, device in enumerate(one_f_one_b(4, 12)):
        kept = most = 0
        for op in device:
            kept += {"F": 1, "B": -1, "U": 0}[op.what]
            most = max(most, kept)
        assert most == 4 - k


def test_a_hop_takes_time():
    slots = timetable(gpipe(2, 1), lambda op, now_s: 1.0, hop=lambda a, b, now_s: now_s + 0.5)
    assert max(slot.end_s for slot in slots) == 1 + 0.5 + 1 + 1 + 0.5 + 1 + 1


def test_a_schedule_that_waits_for_itself_is_refused():
    with pytest.raises(ValueError, match="waits for itself"):
        timetable([[Op("B", 0, 0), Op("F", 0, 0)]], lambda op, now_s: 1.0)


def test_an_all_reduce_moves_every_byte_twice_but_for_one_share():
    assert all_reduce_s(1, 1000, 1.0, 1.0) == 0
    assert all_reduce_s(4, 1000, 0.0, 1000.0) == pytest.approx(2 * 3 / 4)
    assert all_reduce_s(4, 0, 0.1, 1.0) == pytest.approx(0.6)
