"""The live view in a notebook that has IPython alone: a stand-in for it, and a real kernel."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.watch import display
from akkordeon.watch.display import show, view_for
from akkordeon.watch.lines import LineView
from akkordeon.watch.notebook.notebook_view import EVERY_S, NotebookView


class Displayed:
    """What a notebook shows in one place."""

    def __init__(self):
        self.pages = []

    def update(self, page):
        self.pages.append(page)


@pytest.fixture
def shown(monkeypatch):
    """A notebook without ipywidgets."""
    shown, ipython, module = Displayed(), ModuleType("IPython"), ModuleType("IPython.display")
    module.HTML = lambda text: text
    module.display = lambda page, display_id: shown
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(display, "find_spec", lambda name: None)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return shown


def test_a_notebook_without_widgets_has_a_table_that_is_drawn_anew(shown):
    assert isinstance(view_for(print, print), NotebookView)
    assert isinstance(view_for(print, print, live=False), LineView)


def test_the_table_and_the_lines_of_a_session_are_shown_to_its_end(shown):
    with ak.run(small_network()) as session:
        showing = show(session)
        session.attach(ak.Sentinel.train(batches_of(3), cross_entropy, epochs=2, name="a<b>c"))
        session.wait(WAIT_S)
        session.status(WAIT_S)  # so that gates were heard of, however short the training
        showing.close()
    last = shown.pages[-1]
    assert "gate/2" in last
    assert "2 of 2 epochs" in last
    assert "<b>c" not in last
    assert last.count("a&lt;b&gt;c") >= 3, "in the table, and in a line for each epoch"


def test_it_is_drawn_now_and_then(shown):
    clock = iter([0.0, 0.0, EVERY_S / 2, EVERY_S, EVERY_S])

    class Quiet:
        def status(self, timeout):
            pass

        def _repr_html_(self):
            return "a table"

    with NotebookView(now_s=lambda: next(clock)) as view:
        for _ in range(3):
            view.look(Quiet())
    assert shown.pages == ["a table", "a table"]


CELL = """
import torch, akkordeon as ak
from torch import nn
network = ak.Network([ak.Gate(nn.Linear(6, 4), lambda params: torch.optim.SGD(params, lr=0.1))])
batches = [(torch.randn(8, 6), torch.randint(4, (8,))) for _ in range(5)]
with ak.run(network, progress=True) as session:
    session.attach(ak.Sentinel.train(batches, nn.functional.cross_entropy, epochs=2, name="t"))
    session.wait(60)
session
"""


@pytest.mark.slow
def test_a_real_kernel_shows_a_run_and_what_is_left_of_it():
    pytest.importorskip("ipykernel", reason="no kernel is installed: pip install ipykernel nbclient")
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    client.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    pages = [out["data"].get("text/html", "") for out in book.cells[0].outputs if "data" in out]
    assert any("2 of 2 epochs" in page for page in pages)
