"""Showing a session from a script, on a terminal or elsewhere."""

from __future__ import annotations

import io
import sys

import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.watch.display import show, view_for
from akkordeon.watch.lines import LineView


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


def test_who_has_waited_has_been_shown_all_that_came_before(capsys):
    """Lines of the training came after what a script printed when its wait was over."""
    with ak.run(small_network(), progress=True) as session:
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=20))
        session.wait(WAIT_S)
        assert len(capsys.readouterr().out.splitlines()) == 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_shown_live_unless_that_would_change_the_run(monkeypatch):
    from akkordeon.watch.live_view import LiveView

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(view_for(print, print), LiveView)
    assert isinstance(view_for(print, print, live=False), LineView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(print, print), LineView)


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
