"""Who begins when, and how many steps each makes, so that all push about equally often."""

from __future__ import annotations

from akkordeon.downpour.pacing import StepsBySpeed, WarmStart


def test_the_first_goes_alone_until_it_has_pushed_enough_or_has_no_more():
    warm_start = WarmStart(2)
    assert [warm_start.admits(who, 0) for who in ("a", "b", "a")] == [True, False, True]
    assert not warm_start.finish("b")
    assert warm_start.admits("b", 2)
    assert warm_start.finish("a")
    assert warm_start.admits("c", 0)


def test_the_fastest_makes_all_steps_and_others_as_many_as_fit_into_its_time():
    speeds = StepsBySpeed(16)
    for who, steps, at_s in (("fast", 16, 4.0), ("half", 16, 8.0), ("slow", 16, 40.0)):
        speeds.start(who, 0.0)
        assert speeds.steps_of(who) is None
        speeds.record_push(who, steps, at_s)
    assert [speeds.steps_of(who) for who in ("fast", "half", "slow")] == [16, 8, 1]
    speeds.remove("fast")
    assert [speeds.steps_of(who) for who in ("half", "slow")] == [16, 3]


def test_nobody_is_told_how_many_steps_to_make_where_that_is_not_wanted():
    speeds = StepsBySpeed(None)
    speeds.start("a", 0.0)
    speeds.record_push("a", 16, 4.0)
    assert speeds.steps_of("a") is None
