"""Figures of runs side by side: curves of loss and scores, and how stale their gradients were."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from akkordeon.experiments.report.kept_run import KeptRun
from akkordeon.experiments.report.style import PLAIN, as_label, look_of, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TAUS_MAX", "as_svg", "curves", "staleness"]

SCORES_MAX = 6
"""So many scores are drawn, the first."""

GATES_MAX = 12
"""So many gates, the first."""

TAUS_MAX = 40
"""τ up to this one has a bar of its own; all above are in the last."""

IN_A_ROW = 4

NAMED_MAX = 14
"""Of more lines a legend would hide them all."""

MARKS = 10
"""A curve has about so many marks, or one at each point where these are fewer."""


def curves(runs: Sequence[KeptRun]) -> Figure | None:
    """Loss and scores by batches on the left, by seconds on the right; None where nothing was reported.

    Of several runs each has its colour and mark, and a sentinel of one name the same dashes in all.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    names = dict.fromkeys(name for run in runs for name in ("loss", *run.scores()))
    found = {name: curves for name in names if (curves := dict(_curves(runs, name)))}
    if not found:
        return None
    looks = _looks(runs)
    shown = list(found.items())[: SCORES_MAX + 1]
    figure = _figure(len(shown), 2, wide=5.5, high=3.0)
    for row, (name, by_label) in enumerate(shown):
        by_batches, by_seconds = figure.axes[2 * row : 2 * row + 2]
        for label, points in by_label.items():
            steps, seconds, values = zip(*points, strict=True)
            look = {**looks[label], "markevery": max(1, len(points) // MARKS)}
            by_batches.plot(steps, values, label=label, **look)
            by_seconds.plot(seconds, values, label=label, **look)
        by_batches.set(xlabel="batches trained", ylabel=as_label(name))
        by_seconds.set(xlabel="seconds", ylabel=as_label(name))
        if len(by_label) <= NAMED_MAX:
            corner: Literal["upper right", "lower right"] = "upper right" if name == "loss" else "lower right"
            by_batches.legend(loc=corner, frameon=False, fontsize="small")  # to look for the best takes long
    return figure


def _curves(runs: Sequence[KeptRun], name: str) -> Iterator[tuple[str, list[tuple[int, float, float]]]]:
    """The curves of a score with their labels: those of all runs, each sentinel by itself."""
    for run in runs:
        for kind, of in run.told():
            points = run.curve(kind, of, name)
            if any(math.isfinite(value) for _, _, value in points):
                yield _label(runs, run, of), points


def _label(runs: Sequence[KeptRun], run: KeptRun, sentinel: str) -> str:
    return as_label(sentinel if len(runs) == 1 else f"{run.name}: {sentinel}")


def _looks(runs: Sequence[KeptRun]) -> dict[str, dict[str, Any]]:
    """How each curve looks, by its label."""
    sentinels = list(dict.fromkeys(of for run in runs for _, of in run.told()))
    return {
        _label(runs, run, of): look_of(i if len(runs) > 1 else j, j)
        for i, run in enumerate(runs)
        for j, of in enumerate(sentinels)
    }


def staleness(runs: Sequence[KeptRun]) -> Figure | None:
    """How large a share of its updates each gate made with which τ; None where no run says it.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    seen = [(run.name, _seen(run)) for run in runs]
    gates = list(dict.fromkeys(gate for _, by_gate in seen for gate in by_gate))[:GATES_MAX]
    if not gates:
        return None
    columns = min(IN_A_ROW, len(gates))
    figure = _figure(-(-len(gates) // columns), columns, wide=3.0, high=2.4)
    for axes in figure.axes[len(gates) :]:
        axes.set_axis_off()
    for gate, axes in zip(gates, figure.axes, strict=False):
        own = [(i, name, by_gate[gate]) for i, (name, by_gate) in enumerate(seen) if gate in by_gate]
        _bars(axes, own, len(runs) > 1)
        axes.set(title=as_label(gate), xlabel="τ", ylabel="share of updates")
    return figure


def _seen(run: KeptRun) -> dict[str, dict[int, int]]:
    """How often each gate of a run saw which τ."""
    gates = [] if run.summary is None else run.summary.get("gates", [])
    found = {}
    for gate in gates:
        counts = {int(tau): int(n) for tau, n in gate.get("staleness", {}).items()}
        if counts:
            found[str(gate["name"])] = counts
    return found


def _bars(axes: Axes, seen: Sequence[tuple[int, str, Mapping[int, int]]], named: bool) -> None:
    """Bars of runs side by side: the number of its colour, its name, how often it saw which τ."""
    from matplotlib.ticker import MaxNLocator

    width = 0.8 / len(seen)
    for i, (number, name, counts) in enumerate(seen):
        shares = _shares(counts)
        places = [tau + (i - (len(seen) - 1) / 2) * width for tau in shares]
        colour = look_of(number, 0)["color"]
        axes.bar(places, list(shares.values()), width, color=colour, label=as_label(name))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if named:
        axes.legend(loc="upper right", frameon=False, fontsize="small")


def _shares(counts: Mapping[int, int]) -> dict[int, float]:
    total, shares = sum(counts.values()), dict[int, float]()
    for tau, n in sorted(counts.items()):
        at = min(tau, TAUS_MAX)
        shares[at] = shares.get(at, 0.0) + n / total
    return shares


def _figure(rows: int, columns: int, wide: float, high: float) -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide * columns, high * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.grid(alpha=0.3)
    return figure


def as_svg(figure: Figure) -> str:
    """A figure as an element of a page."""
    from matplotlib import rc_context

    text = StringIO()
    with rc_context(PLAIN):
        metadata: Any = {"Date": None}
        figure.savefig(text, format="svg", metadata=metadata)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
