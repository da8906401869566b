"""What all sinks have in common: when gates are written, and how a sink ends."""

from __future__ import annotations

import itertools
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.reports import GateStatus
from akkordeon.watch.sinks import sink as sink_module
from akkordeon.watch.sinks.asking import GateAsker
from akkordeon.watch.sinks.sink import GATE_EVERY_S, Sink, flat, require_extra


class Kept(Sink):
    """All that a new sink has to say."""

    def __init__(self, **options):
        super().__init__(**options)
        self.points, self.ends = [], 0

    def write(self, point):
        self.points.append(point)

    def end(self):
        self.ends += 1


def status(probe, address="gate/0"):
    return GateStatus(probe, address, "g", 0, probe, 0, 0, {0: 1}, {})


def test_a_sink_is_told_of_a_session_from_its_begin_to_what_gates_tell_at_their_end():
    with Kept() as sink, ak.run(small_network()) as session:
        session.subscribe(sink)
        session.attach(ak.Sentinel.train(batches_of(5), cross_entropy, epochs=2, name="t"))
        session.attach(ak.Sentinel.validate(batches_of(2), cross_entropy, name="v"))
        session.wait(WAIT_S)
    assert [p.step for p in sink.points if p.kind == "epoch"] == [5, 10]
    assert {p.of for p in sink.points if p.kind == "round"} == {"v"}
    last = {p.of: p.numbers["version"] for p in sink.points if p.kind == "gate"}
    assert last == {"gate/0": 10, "gate/1": 10, "gate/2": 10}
    assert sink.ends == 1


def test_a_sentinel_that_failed_and_went_on_has_trained_as_many_batches_as_it_says():
    calls = itertools.count()

    def fails_once(outputs, y):
        if next(calls) == 7:
            raise OSError("gone")
        return cross_entropy(outputs, y)

    training = ak.Sentinel.train(batches_of(5), fails_once, epochs=3, name="t", on_failure="restart")
    with Kept() as sink, ak.run(small_network(), ak.Simulator()) as session:
        session.subscribe(sink)
        train = session.attach(training)
        session.wait(WAIT_S)
    last = [p.step for p in sink.points if p.kind == "epoch"][-1]
    assert last == train.batches.trained >= 14


def test_a_gate_is_written_now_and_then_and_at_its_end():
    clock = iter([0.0, 1.0, 1.5, GATE_EVERY_S + 0.5, GATE_EVERY_S + 0.6])
    sink = Kept(now_s=lambda: next(clock))
    for record in (status(1), status(2), status(3, "gate/1"), status(4), status(0)):
        sink(record)
    assert [(p.of, p.numbers["version"]) for p in sink.points] == [
        ("gate/0", 1),
        ("gate/1", 3),
        ("gate/0", 4),
        ("gate/0", 0),
    ]


def test_a_sink_that_is_closed_writes_nothing_more():
    sink = Kept()
    sink.close()
    sink.close()
    sink(status(0))
    assert (sink.points, sink.ends) == ([], 1)


def test_a_sink_that_raises_is_logged_and_harms_nobody(caplog):
    class Breaks(Kept):
        def write(self, point):
            raise OSError("no space left")

        def end(self):
            raise OSError("no space left")

    with caplog.at_level(logging.ERROR), Breaks() as sink, ak.run(small_network()) as session:
        session.subscribe(sink)
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy)).wait(WAIT_S)
    assert "a watcher of the session raised and was unsubscribed" in caplog.text
    assert "Breaks could not write the last of it: OSError: no space left" in caplog.text


def test_nobody_waits_for_ever_for_a_sink_whose_write_does_not_end(monkeypatch, caplog):
    monkeypatch.setattr(sink_module, "WRITE_S", 0.01, raising=False)
    begun, may_end = threading.Event(), threading.Event()

    class Stuck(Kept):
        def write(self, point):
            begun.set()
            assert may_end.wait(WAIT_S)

    sink = Stuck()
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(sink, status(0))
        assert begun.wait(WAIT_S)
        try:
            pool.submit(sink.close).result(WAIT_S / 2)
        finally:
            may_end.set()
        writing.result(WAIT_S)
    assert "Stuck could not write the last of it: a write has not ended for 0.01 s" in caplog.text
    sink(status(0))
    assert sink.ends == 0


def test_gates_are_asked_now_and_then_and_not_at_the_end():
    class Asked:
        times = 0

        def status(self, timeout):
            self.times += 1

    session, clock = Asked(), iter([0.0, 0.0, 1.0, GATE_EVERY_S + 1, GATE_EVERY_S + 1])
    asker = GateAsker(now_s=lambda: next(clock))
    for at_once in (False, False, False, True):
        asker.look(session, at_once)
    assert session.times == 2


def test_what_is_not_installed_is_told_with_how_to_have_it():
    with pytest.raises(RecipeError, match=r"a thing needs no_such_module.*pip install 'akkordeon\[ex\]'"):
        require_extra("no_such_module", "a thing", "ex")
    with pytest.raises(RecipeError, match=r"pip install no_such_module$"):
        require_extra("no_such_module", "a thing", None)


def test_settings_in_settings_have_one_name_each():
    plain = {"lr": 0.1, "seed": None, "downpour": {"replicas": 2, "fetch": None}}
    assert flat(plain) == {"lr": 0.1, "downpour.replicas": 2}
