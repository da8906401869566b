"""Figures of a comparison."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace

import pytest

from akkordeon.core.errors import RecipeError
from akkordeon.experiments.laboratory import figures
from akkordeon.experiments.laboratory.arm import Outcome
from akkordeon.experiments.laboratory.study import Compared

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def cell(method, delay, *losses):
    outcomes = tuple(
        Outcome(loss, loss, {}, [[10, loss + 1], [20, loss]], [float(delay)], [delay + 1], 0.01)
        for loss in losses
    )
    return Compared(method, delay, 0.1, False, outcomes)


@needs_matplotlib
def test_every_method_is_in_the_figure_also_one_that_diverges(tmp_path):
    cells = [
        cell(method, delay, 1.0 + delay, 1.5) for method in ("stash/sgd", "inverse/sgd") for delay in (0, 4)
    ]
    cells += [cell("latest/sgd", 0, 1.0, 1.2), cell("latest/sgd", 4, math.inf, 1.0)]
    svg, png = figures.draw(cells, tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    said = svg.read_text()
    for text in ("stash/sgd", "inverse/sgd", "latest/sgd", "delay, updates", "seconds, at delay 4"):
        assert text in said


@needs_matplotlib
def test_where_nothing_diverges_a_figure_has_no_empty_margin(tmp_path):
    """A line without points, which is not clipped, took a tenth of the width."""
    from matplotlib.image import imread

    _, png = figures.draw([cell("stash/sgd", delay, 1.0, 1.5) for delay in (0, 1)], tmp_path)
    is_blank = (imread(png)[..., :3] == 1).all(axis=(0, 2))
    assert is_blank.argmin() < len(is_blank) / 50


@pytest.fixture
def axes_of(monkeypatch, tmp_path):
    """Draws cells, and gives the axes instead of files."""
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, *_: drawn.append(figure) or [])

    def draw(cells):
        figures.draw(cells, tmp_path)
        return drawn[-1].axes

    return draw


@needs_matplotlib
def test_a_method_that_diverges_does_not_flatten_the_curves_of_others(axes_of):
    good, bad = cell("stash/sgd", 1, 1.0), cell("latest/sgd", 1, 1.0)
    diverged = replace(bad.outcomes[0], validation=math.inf, curve=[[10, 2.0], [20, 1e33]])
    for axes in axes_of([good, replace(bad, outcomes=(diverged,))])[1:]:
        assert axes.get_ylim() == pytest.approx((0.95, 2.05))


@needs_matplotlib
def test_ten_methods_have_lines_of_their_own(axes_of):
    axes = axes_of([cell(f"{i}/sgd", delay, 1.0 + i) for i in range(10) for delay in (0, 1)])
    for each in axes[1:]:
        assert len({(line.get_color(), line.get_linestyle()) for line in each.lines}) == 10


@needs_matplotlib
def test_figures_of_one_comparison_are_alike(tmp_path):
    cells = [cell("stash/sgd", delay, 1.0) for delay in (0, 1)]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (one, _), (other, _) = (figures.draw(cells, tmp_path / name) for name in ("one", "other"))
    assert one.read_text() == other.read_text()


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'akkordeon\[figures\]'"):
        figures.require_matplotlib()
