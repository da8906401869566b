"""Showing a session from a script: akkordeon.watch.showing, and views that fail."""

from __future__ import annotations

import io
import sys

import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.reports import BestKept, EpochDone, LastKept
from akkordeon.experiments.saving import ASK_EVERY_S, Saver
from akkordeon.watch.follower import Careful
from akkordeon.watch.lines import Lines
from akkordeon.watch.showing import Showing, show, view_for


def test_where_there_is_no_terminal_a_session_is_shown_in_lines(capsys):
    with ak.run(small_network()) as session:
        showing = show(session)
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=2, name="tdp"))
        session.wait(WAIT_S)
        showing.close()
        showing.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["tdp", "epoch", "1"], ["tdp", "epoch", "2"]]


@pytest.mark.parametrize("engine", ["threads", "simulator"])
def test_a_run_with_progress_is_shown_until_it_is_closed(engine, capsys):
    with ak.run(small_network(), engine, progress=True) as session:
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=2, name="tdp"))
        session.wait(WAIT_S)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["tdp", "epoch", "1"], ["tdp", "epoch", "2"]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_shown_live_unless_that_would_change_the_run(monkeypatch):
    from akkordeon.watch.live_view import LiveView

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(view_for(print, print), LiveView)
    assert isinstance(view_for(print, print, live=False), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(print, print), Lines)


def test_a_session_is_shown_live_until_it_is_closed(monkeypatch):
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    with ak.run(small_network()) as session:
        showing = show(session)
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=2, name="tdp"))
        session.wait(WAIT_S)
        showing.close()
    assert "gate/0" in screen.getvalue()
    assert "epoch 2/2" in screen.getvalue()


class Breaks:
    """A view that fails in its second record."""

    def __init__(self):
        self.told = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.told.append("left")

    def tell(self, record):
        self.told.append(record)
        if len(self.told) == 2:
            raise BrokenPipeError("gone")

    def note(self, sentence):
        self.told.append(sentence)

    def look(self, session, at_once=False):
        self.told.append("looked")


def test_a_view_that_fails_is_told_once_and_left_alone():
    warned, view = [], Breaks()
    with Careful(view, "the screen", warned.append) as careful:
        for record in (1, 2, 3):
            careful.tell(record)
        careful.look(None)
        careful.note("a sentence for people")
    assert view.told == [1, 2]
    assert warned == [
        "the screen has failed and is left out from now on (BrokenPipeError: gone)",
        "a sentence for people",
    ]


def test_a_view_that_fails_where_nobody_listens_harms_nobody():
    def deaf(sentence):
        raise OSError

    careful = Careful(Breaks(), "the screen", deaf)
    for record in (1, 2, 3):
        careful.tell(record)
    careful.note("a sentence")


def test_showing_ends_though_its_view_fails(capsys):
    with ak.run(small_network()) as session:
        showing = Showing(session, Breaks())
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=3))
        session.wait(WAIT_S)
        showing.close()
    assert "what shows the session has failed" in capsys.readouterr().err


# ── weights written as they come ─────────────────────────────────────────────────────────────────────


class Disk:
    """A folder in memory, which may be full."""

    def __init__(self):
        self.saved, self.full = [], False

    def save(self, name, module):
        if self.full:
            raise ak.errors.DataError("the disk is full")
        self.saved.append((name, module))


class Weighed:
    """A session whose modules are the states themselves."""

    def __init__(self):
        self.network, self.asked = self, 0

    def module(self, states=None):
        return states or "last"

    def best_states(self):
        return "best"

    def states(self, timeout):
        self.asked += 1
        return f"asked {self.asked}"


@pytest.fixture
def saving():
    """A saver with its disk, session, clock, whether to stop, and what it warned of."""

    class Saving:
        disk, session, now_s, stopping, warned = Disk(), Weighed(), 0.0, False, []

        def saver(self, asks=True) -> Saver:
            return Saver(
                self.disk, self.session, lambda: self.stopping, asks, self.warned.append, lambda: self.now_s
            )

    return Saving()


def test_weights_are_written_as_they_come_and_at_most_once_a_second(saving):
    saver = saving.saver()
    saver.tell(BestKept("vdp", 1, 0.5, "best 1"))
    saver.tell(LastKept("vdp", 1, "last 1"))
    saver.tell(EpochDone("tdp", 1, 0.5, {}, 100, 2.0, 1.5, 4))
    saver.look(saving.session)
    assert saving.disk.saved == [("best.safetensors", "best 1"), ("weights.safetensors", "last 1")]
    for number in (2, 3):
        saver.tell(LastKept("vdp", number, f"last {number}"))
        saver.look(saving.session)
    assert len(saving.disk.saved) == 2
    saving.now_s = 1.0
    saver.look(saving.session)
    assert saving.disk.saved[2:] == [("weights.safetensors", "last 3")]
    saver.finish()
    assert saving.disk.saved[3:] == [("weights.safetensors", "last"), ("best.safetensors", "best")]


def test_a_full_disk_is_told_once_and_tried_again(saving):
    saver = saving.saver()
    saving.disk.full = True
    for number in range(3):
        saving.now_s += 2.0
        saver.tell(LastKept("vdp", number, f"last {number}"))
        saver.look(saving.session)
    assert len(saving.warned) == 1
    assert saving.warned[0].startswith("the disk is full; training goes on")
    saving.disk.full, saving.now_s = False, 8.0
    saver.tell(LastKept("vdp", 3, "last 3"))
    saver.look(saving.session)
    assert saving.disk.saved == [("weights.safetensors", "last 3")]


def test_a_session_without_rounds_is_asked_for_its_weights_unless_the_run_is_to_be_repeated(saving):
    asking, silent = saving.saver(), saving.saver(asks=False)
    saving.now_s = ASK_EVERY_S + 1
    silent.look(saving.session)
    assert saving.disk.saved == []
    asking.look(saving.session)
    assert saving.disk.saved == [("weights.safetensors", "asked 1")]
    saving.stopping = True
    silent.look(saving.session)
    silent.look(saving.session)
    assert saving.disk.saved[1:] == [("weights.safetensors", "asked 2")]
