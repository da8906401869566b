"""Heartbeats: who is asked and when, who owes an answer, and who will give none. Without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from akkordeon.engines.ray.cluster import heartbeats
from akkordeon.engines.ray.cluster.heartbeats import Heartbeats, Lost


class RayError(Exception):
    pass


class ActorUnavailableError(RayError):
    pass


class FakeRay:
    """Answers that come when the test says so."""

    exceptions = SimpleNamespace(RayError=RayError, ActorUnavailableError=ActorUnavailableError)

    def __init__(self) -> None:
        self.answered: dict[str, Any] = {}

    def wait(self, refs: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        ready = [ref for ref in refs if ref in self.answered][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: str, timeout: float) -> Any:
        answer = self.answered[ref]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def ray(monkeypatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(heartbeats, "require_ray", lambda: fake)
    return fake


@pytest.fixture
def at(monkeypatch) -> Callable[[float], None]:
    """Sets the clock."""
    now = [100.0]
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now[0])
    return lambda now_s: now.__setitem__(0, now_s)


def asked(beats: Heartbeats, name: str, ref: str, every_s: float = 0.0) -> bool:
    """Whether a process was asked."""
    before = beats.owed()
    beats.ask(name, lambda: ref, every_s)
    return beats.owed() != before


def test_who_owes_an_answer_is_not_asked_again(ray):
    beats = Heartbeats()
    assert asked(beats, "a", "first")
    assert not asked(beats, "a", "second")
    ray.answered["first"] = None
    assert beats.answers(0.0) == [("a", None)]
    assert asked(beats, "a", "second")


def test_a_process_is_asked_only_so_often(ray, at):
    beats = Heartbeats()
    assert asked(beats, "a", "first", every_s=0.5)
    ray.answered["first"] = None
    beats.answers(0.0)
    at(100.4)
    assert not asked(beats, "a", "second", every_s=0.5)
    at(100.5)
    assert asked(beats, "a", "second", every_s=0.5)


def test_who_is_dead_is_lost_and_who_cannot_be_reached_now_is_asked_again(ray):
    beats = Heartbeats()
    died = RayError("died")
    for name, ref in (("dead", "1"), ("away", "2"), ("well", "3")):
        asked(beats, name, ref)
    ray.answered.update({"1": died, "2": ActorUnavailableError(), "3": "well"})
    assert beats.answers(0.0, all_of_them=True) == [("dead", Lost(died)), ("well", "well")]
    assert asked(beats, "away", "4")


def test_who_owes_an_answer_for_long_is_silent_unless_it_is_excused_or_dropped(ray, at):
    beats = Heartbeats()
    for name in ("stuck", "coming up", "ended"):
        asked(beats, name, name)
    at(131.0)
    beats.excuse("coming up")
    beats.drop("ended")
    assert beats.silent(30.0) == ["stuck"]
    assert beats.owed() == ["stuck", "coming up"]
    ray.answered["stuck"] = None
    beats.answers(0.0)
    assert beats.silent(30.0) == []


def test_where_nobody_was_asked_nothing_is_answered(ray):
    assert Heartbeats().answers(0.0) == []


def test_who_is_dropped_while_all_are_waited_for_is_not_asked_for_an_answer(ray, at, monkeypatch):
    """A session that ended at the wrong moment ended the watch over a network: no gate came back any more."""
    beats = Heartbeats()
    asked(beats, "session", "ref-1")
    asked(beats, "gate", "ref-2")
    ray.answered |= {"ref-1": None, "ref-2": None}
    wait = ray.wait

    def wait_while_one_is_dropped(refs, **how):
        beats.drop("session")
        return wait(refs, **how)

    monkeypatch.setattr(ray, "wait", wait_while_one_is_dropped)
    assert beats.answers(1.0, all_of_them=True) == [("gate", None)]
