"""Figures of a comparison: loss by delay, over batches, and over seconds. Readable without colour."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from akkordeon.experiments.laboratory.study import Compared
from akkordeon.experiments.report.style import PLAIN, STYLES, look_of, require_matplotlib, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "require_matplotlib"]


def draw(cells: Sequence[Compared], folder: Path) -> list[Path]:
    """Draw a comparison as ``figure.svg`` and ``figure.png``.

    Left is the validation loss by delay, mean and standard deviation; a method that diverges has its mark at
    the upper edge. In the middle and on the right is the training loss at the longest delay, by batches and
    by the seconds that these take in one process.

    Args:
        cells: as a :class:`Study <akkordeon.experiments.laboratory.study.Study>` has them.
        folder: where to; it exists.

    Returns:
        The files.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(PLAIN):
        return _drawn(Figure(figsize=(13, 4), layout="constrained"), cells, folder)


def _drawn(figure: Figure, cells: Sequence[Compared], folder: Path) -> list[Path]:
    by_delay, by_batches, by_seconds = figure.subplots(1, 3)
    longest = max(cell.delay for cell in cells)
    methods = dict.fromkeys(cell.method for cell in cells)
    shown = []
    for i, method in enumerate(methods):
        own = [cell for cell in cells if cell.method == method]
        again, at = divmod(i, len(STYLES))
        look = look_of(at, at + again) | {"label": method}
        _by_delay(by_delay, own, look)
        for cell in own:
            if cell.delay == longest:
                losses = _curves(by_batches, by_seconds, cell, look | {"marker": ""})
                shown += losses if math.isfinite(cell.of("validation")[0]) else []
    if shown:  # what diverges may leave the figure
        margin = 0.05 * (max(shown) - min(shown)) or 1.0
        for axes in (by_batches, by_seconds):
            axes.set_ylim(min(shown) - margin, max(shown) + margin)
    by_delay.set(xlabel="delay, updates", ylabel="validation loss", xticks=sorted({c.delay for c in cells}))
    by_batches.set(xlabel=f"batches, at delay {longest}", ylabel="training loss")
    by_seconds.set(xlabel=f"seconds, at delay {longest}", ylabel="training loss")
    by_delay.legend(loc="upper left", frameon=False, fontsize="small")
    for axes in (by_delay, by_batches, by_seconds):
        axes.grid(alpha=0.3)
    return save_figure(figure, folder, "figure")


def _by_delay(axes: Axes, cells: Sequence[Compared], look: dict[str, Any]) -> None:
    found = [(cell.delay, *cell.of("validation")) for cell in cells]
    finite = [each for each in found if math.isfinite(each[1])]
    delays, means, spreads = zip(*finite, strict=True) if finite else ((), (), ())
    axes.errorbar(delays, means, spreads, capsize=3, **look)
    diverged = [delay for delay, mean, _ in found if not math.isfinite(mean)]
    if not diverged:  # a line without points that is not clipped takes room from the corner on
        return
    edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "linestyle": ""}
    axes.plot(diverged, [1.0] * len(diverged), color=look["color"], marker=look["marker"], **edge)


def _curves(by_batches: Axes, by_seconds: Axes, cell: Compared, look: dict[str, Any]) -> list[float]:
    """The mean curve over seeds, as far as all of them came; its losses."""
    curve = list(_mean_curve([outcome.curve for outcome in cell.outcomes]))
    step_s = fmean(outcome.step_s for outcome in cell.outcomes)
    batches, losses = [point[0] for point in curve], [point[1] for point in curve]
    by_batches.plot(batches, losses, **look)
    by_seconds.plot([step_s * batch for batch in batches], losses, **look)
    return losses


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> Iterator[tuple[float, float]]:
    for points in zip(*curves, strict=False):
        yield points[0][0], fmean(loss for _, loss in points)
