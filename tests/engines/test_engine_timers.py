"""Things that an engine does later or meanwhile."""

from __future__ import annotations

import threading

from akkordeon.engines.timers import Timers


def test_what_takes_long_is_done_while_reports_go_on_and_its_outcome_is_told_as_they_are():
    """Reports of everybody waited for a gate that was made anew."""
    changed = threading.Condition(threading.RLock())
    timers, may_end, outcomes = Timers(changed), threading.Event(), []

    def fail():
        may_end.wait(10)
        raise ValueError("no such place")

    timers.meanwhile(fail, outcomes.append)
    with changed:  # a report is heard, and then one waits for the next
        assert not outcomes
        may_end.set()
        assert changed.wait_for(lambda: outcomes, 10)
    assert str(outcomes[0]) == "no such place"


def test_of_what_ends_after_the_engine_nobody_is_told():
    timers, told = Timers(threading.Condition()), []
    may_end, began = threading.Event(), threading.Event()

    def work():
        began.set()
        may_end.wait(10)

    timers.meanwhile(work, told.append)
    began.wait(10)
    stopping = threading.Thread(target=timers.stop)
    stopping.start()
    while timers._waiting:
        threading.Event().wait(0.001)
    may_end.set()
    stopping.join(10)
    assert told == []
