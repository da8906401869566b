"""Curves and the log that a browser is shown of before it came."""

from __future__ import annotations

import math
import threading

from akkordeon.session.page import history
from akkordeon.session.page.history import History


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_what_has_come_since_a_number_is_given_and_no_more():
    clock = Clock()
    past = History(5.0, clock)
    past.point("train", "loss", 0.5)
    before = past.since(0)
    clock.now_s += 2
    past.point("train", "loss", 0.25)
    past.note("came", "validate", "came to validate")
    after = past.since(before.number)
    assert before.curves == {"train": {"loss": [[5.0, 0.5]]}}
    assert before.log == []
    assert after.curves == {"train": {"loss": [[7.0, 0.25]]}}
    assert [(e["seconds"], e["kind"], e["who"], e["text"]) for e in after.log] == [
        (7.0, "came", "validate", "came to validate")
    ]
    assert past.since(after.number).curves == {}
    assert past.since(after.number).log == []


def test_curves_and_log_are_bounded(monkeypatch):
    monkeypatch.setattr(history, "CURVES_MAX", 3)
    past = History()
    for i in range(3 * history.POINTS_MAX):
        past.point("train", "loss", float(i))
    for i in range(2 * history.LOG_MAX):
        past.note("noted", "train", str(i))
    for name in "abcd":
        past.point(name, "loss", 1.0)
    all_of_it = past.since(0)
    assert set(all_of_it.curves) == {"b", "c", "d"}
    assert [entry["text"] for entry in all_of_it.log] == [
        str(i) for i in range(history.LOG_MAX, 2 * history.LOG_MAX)
    ]


def test_a_curve_that_goes_on_is_not_forgotten_for_those_that_came_later(monkeypatch):
    monkeypatch.setattr(history, "CURVES_MAX", 3)
    past = History()
    for name in "abcdef":
        past.point("train", "loss", 1.0)
        past.point(name, "loss", 1.0)
    curves = past.since(0).curves
    assert set(curves) == {"train", "e", "f"}
    assert len(curves["train"]["loss"]) == 6


def test_a_long_curve_keeps_its_ends_and_is_exact_where_it_is_young():
    past = History()
    many = 3 * history.POINTS_MAX
    for i in range(many):
        past.point("train", "loss", float(i))
    values = [value for _, value in past.since(0).curves["train"]["loss"]]
    assert len(values) <= history.POINTS_MAX
    assert values[0] == 0.0
    young = history.POINTS_MAX // 4
    assert values[-young:] == [float(i) for i in range(many - young, many)]
    assert values == sorted(values)


def test_what_is_no_finite_number_is_left_out():
    past = History()
    for value in (math.nan, math.inf, 1.0):
        past.point("train", "loss", value)
    assert [value for _, value in past.since(0).curves["train"]["loss"]] == [1.0]


def test_threads_that_write_and_read_lose_nothing():
    past, writers = History(), 4

    def write(name):
        for i in range(200):
            past.point(name, "loss", float(i))

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(writers)]
    for thread in threads:
        thread.start()
    number, found = 0, {str(n): [] for n in range(writers)}
    while any(thread.is_alive() for thread in threads) or number < 200 * writers:
        news = past.since(number)
        number = news.number
        for name, measures in news.curves.items():
            found[name] += [value for _, value in measures["loss"]]
    for thread in threads:
        thread.join()
    assert all(values == [float(i) for i in range(200)] for values in found.values())


def test_what_was_forgotten_is_of_no_use_to_who_has_it_already():
    past = History()
    past.point("train", "loss", 0.5)
    before = past.since(0)
    past.begin_anew()
    past.point("train", "loss", 0.25)
    after = past.since(before.number)
    assert (before.is_anew, after.is_anew, past.since(after.number).is_anew) == (False, True, False)
    assert [value for _, value in after.curves["train"]["loss"]] == [0.25]
    assert past.since(0).curves == after.curves
