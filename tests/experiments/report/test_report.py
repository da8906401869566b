"""The report of runs: one page that needs nothing else, and figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from tests.support.kept import epoch, gate, round_of, summary, written

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.engines.timeline import Span
from akkordeon.experiments.report import style
from akkordeon.experiments.report.figures import TAUS_MAX, curves, staleness
from akkordeon.experiments.report.kept_run import load_runs

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[figures]'")
from matplotlib.colors import to_rgba

HOSTILE = '<script>alert(1)</script> & $x_{ "quoted" _'


class Page(HTMLParser):
    """The texts of a page, its tables, and what it would load."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.loads, self.rows, self.texts = [], [], [], []
        self._cell = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        links = [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.loads += [link for link in links if not link.startswith("#")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell is not None:
            self._cell += data

    def row(self, name):
        (found,) = [row for row in self.rows if row[:1] == [name]]
        return found[1:]


def test_the_page_needs_no_other_file_and_no_script(tmp_path):
    page = Page(ak.report(written(tmp_path / "one"), written(tmp_path / "two")).html)
    assert page.loads == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.tags.count("svg") == 2 + 2, "curves, staleness, and a timeline of each run"


def test_the_page_says_where_batches_went_and_what_it_came_to(tmp_path):
    page = Page(ak.report(written(tmp_path / "one"), written(tmp_path / "two", told={})).html)
    assert page.row("batches trained") == ["20", "–"]
    assert page.row("batches lost") == ["1", "–"]
    assert page.row("gates made anew") == ["2", "0"]
    assert page.row("ended") == ["yes", "no: it is at work, or was killed"]
    assert ["one", "train", "2", "0.5000", "accuracy 0.7500", "160", "2.0"] in page.rows
    assert ["one", "gate/1", "20", "1.50", "2"] in page.rows


def test_settings_that_differ_stand_by_themselves(tmp_path):
    one, two = (written(tmp_path / name, settings={"lr": lr}) for name, lr in (("one", 0.1), ("two", 0.2)))
    _, _, settings = ak.report(one, two).html.partition("that differ")
    differing, _, every = settings.partition("<details>")
    assert Page(differing).rows == [["", "one", "two"], ["lr", "0.1", "0.2"]]
    assert Page(every).row("task") == ["digits", "digits"]


def test_the_environment_is_on_the_page(tmp_path):
    page = Page(ak.report(written(tmp_path)).html)
    assert page.row("python")[0].startswith("3.")
    assert len(page.row("gpus")) == 1


def hostile(tmp_path):
    sentinel = {"role": "train", "rounds": 1, "loss": None, "scores": {HOSTILE: 1.0}}
    told = summary(
        sentinels={HOSTILE: {**sentinel, "samples": 1, "seconds": 1.0}}, gates=[gate(HOSTILE, **{"1": 2})]
    )
    records = [epoch(1, 0.5, HOSTILE, **{HOSTILE: 0.5}), round_of(1, 0.5, "_hidden", **{HOSTILE: 0.5})]
    spans = [Span(HOSTILE, "forward", 1, 0.0, 1.0)]
    return written(tmp_path / "a <b>bold", records, told, {HOSTILE: HOSTILE}, spans)


def test_no_name_can_break_the_page(tmp_path):
    page = Page(ak.report(hostile(tmp_path), written(tmp_path / "two")).html)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert [HOSTILE, HOSTILE, "–"] in page.rows
    assert any("_hidden" in text for text in page.texts), "it is in the legend of the curves"


def test_no_legend_looks_for_its_place(tmp_path, monkeypatch):
    """On a busy machine that took over a second, of which matplotlib warned the user."""

    def find_best_position(*given):
        raise AssertionError("a legend looks for its place")

    monkeypatch.setattr("matplotlib.legend.Legend._find_best_position", find_best_position)
    ak.report(written(tmp_path / "one"), written(tmp_path / "two")).save_figures(tmp_path / "figures")


def test_figures_are_written_as_svg_and_png(tmp_path):
    files = ak.report(written(tmp_path / "one"), hostile(tmp_path)).save_figures(tmp_path / "new" / "figures")
    assert [file.name for file in files] == [
        "curves.svg", "curves.png", "staleness.svg", "staleness.png", "timeline-1.svg", "timeline-2.svg"
    ]  # fmt: skip
    for file in files:
        if file.suffix == ".svg":
            ElementTree.fromstring(file.read_text(encoding="utf-8"))
        else:
            assert file.read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_page(tmp_path):
    folder = written(tmp_path)
    assert ak.report(folder).html == ak.report(folder).html


def test_curves_of_several_runs_are_side_by_side_and_look_the_same_in_all_figures(tmp_path):
    one, two = (written(tmp_path / name) for name in ("one", "two"))
    loss, loss_by_seconds, accuracy, _ = curves(load_runs([one, two])).axes
    assert [line.get_label() for line in loss.lines] == [
        "one: train", "one: validate", "two: train", "two: validate"
    ]  # fmt: skip
    assert [line.get_label() for line in accuracy.lines] == ["one: train", "two: train"]
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in loss.lines]
    colours, marks, dashes = zip(*looks, strict=True)
    assert colours[0] == colours[1] != colours[2] == colours[3], "a run has its colour"
    assert marks[0] == marks[1] != marks[2] == marks[3], "and its mark, for who sees no colours"
    assert dashes[0] == dashes[2] != dashes[1] == dashes[3], "a sentinel has its dashes"
    assert [line.get_color() for line in accuracy.lines] == [colours[0], colours[2]]
    assert list(loss.lines[0].get_xdata()) == [10, 20]
    assert list(loss_by_seconds.lines[0].get_xdata()) == [0.5, 1.5]
    assert list(loss.lines[0].get_ydata()) == [1.0, 0.5]


def test_a_score_that_is_never_a_number_has_no_figure(tmp_path):
    figure = curves(load_runs([written(tmp_path, [epoch(1, 0.5, f=float("nan"))])]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "loss"]


def test_a_run_of_which_nothing_was_reported_has_a_page(tmp_path):
    folder = written(tmp_path, [], summary(gates=[], sentinels={}), spans=[])
    runs = load_runs([folder])
    assert curves(runs) is None
    assert staleness(runs) is None
    html = ak.report(folder).html
    assert "No epoch and no round was reported." in html
    assert "No run says how stale its gradients were." in html


def test_staleness_is_a_share_of_updates_for_each_gate(tmp_path):
    told = summary(gates=[gate("gate/0", **{"0": 5, "1": 15}), gate("gate/1", **{"3": 1, "900": 1})])
    first, second = staleness(load_runs([written(tmp_path, told=told)])).axes
    assert [bar.get_height() for bar in first.patches] == [0.25, 0.75]
    assert [bar.get_height() for bar in second.patches] == [0.5, 0.5]
    last = second.patches[-1]
    assert last.get_x() + last.get_width() / 2 == pytest.approx(TAUS_MAX)


def test_a_run_has_one_colour_in_curves_and_bars_though_another_lacks_the_gate(tmp_path):
    one = written(tmp_path / "one", told=summary(gates=[gate("gate/0", **{"0": 1})]))
    two = written(tmp_path / "two", told=summary(gates=[gate("gate/1", **{"0": 1})]))
    runs = load_runs([one, two])
    colours = [to_rgba(line.get_color()) for line in curves(runs).axes[0].lines]
    assert [axes.patches[0].get_facecolor() for axes in staleness(runs).axes] == [colours[0], colours[2]]


def test_a_report_shows_itself_in_a_notebook_and_has_one_short_line_elsewhere(tmp_path):
    made = ak.report(*(written(tmp_path / f"run-{i}") for i in range(5)))
    assert repr(made) == "<RunReport: run-0, run-1, run-2, and 2 more>"
    assert made._repr_html_().startswith('<div class="akkordeon">')
    assert "<html" not in made._repr_html_()


def test_what_cannot_be_written_is_told(tmp_path):
    made = ak.report(written(tmp_path / "one"))
    with pytest.raises(DataError, match=r"r.html cannot be written: No such file"):
        made.save(tmp_path / "absent" / "r.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the folder .*file cannot be made"):
        made.save_figures(tmp_path / "file")


def test_a_report_of_nothing_and_one_without_matplotlib_are_refused(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="a report is of one run or more"):
        ak.report()
    monkeypatch.setattr(style.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=re.escape("pip install 'akkordeon[figures]'")):
        ak.report(written(tmp_path))
