"""The report of runs as one page of HTML that needs no other file, no network and no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from akkordeon.core.notebook.html import paragraph, table
from akkordeon.engines.timeline.drawing import svg
from akkordeon.experiments.report.figures import TAUS_MAX, as_svg, curves, staleness
from akkordeon.experiments.report.kept_run import KeptRun

__all__ = ["body", "page"]

STYLE = """
body { font-family: Helvetica, Arial, sans-serif; font-size: 14px; margin: 2em auto; max-width: 1400px;
       padding: 0 1em; color: #222; background: #fff; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2em; } h3 { font-size: 1em; }
table { border-collapse: collapse; margin: .5em 0; }
th, td { padding: .25em .9em; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
summary { cursor: pointer; }
"""

NONE = "–"


def page(runs: Sequence[KeptRun]) -> str:
    """A whole document.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    title = escape(", ".join(run.name for run in runs))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"{body(runs)}\n</body>\n</html>\n"
    )


def body(runs: Sequence[KeptRun]) -> str:
    """What is in it, for a page or a notebook."""
    return "\n".join(
        part
        for heading, parts in (
            ("Curves", _curves(runs)),
            ("Outcome", _outcome(runs)),
            ("Staleness", _staleness(runs)),
            ("The last that actors did", _timelines(runs)),
            ("Settings", _settings(runs)),
            ("Environment", _environment(runs)),
        )
        for part in (f"<h2>{heading}</h2>", *parts)
    )


def _curves(runs: Sequence[KeptRun]) -> Iterator[str]:
    figure = curves(runs)
    yield paragraph("No epoch and no round was reported.") if figure is None else as_svg(figure)


def _staleness(runs: Sequence[KeptRun]) -> Iterator[str]:
    figure = staleness(runs)
    if figure is None:
        yield paragraph("No run says how stale its gradients were.")
        return
    last = f"{TAUS_MAX} stands for all from there on"
    yield paragraph(f"The share of its updates that a gate made with a gradient τ updates old; {last}.")
    yield as_svg(figure)


def _outcome(runs: Sequence[KeptRun]) -> Iterator[str]:
    """Where batches went, then what every sentinel came to, and every gate."""
    yield table(("", *(run.name for run in runs)), _accounting(runs))
    sentinels, gates = list(_sentinels(runs)), list(_gates(runs))
    if sentinels:
        yield table(("run", "sentinel", "rounds", "loss", "scores", "samples", "seconds"), sentinels)
    if gates:
        headings = ("run", "gate", "version", "τ mean", "τ max", "cosine", "correction")
        said = len(headings) if any(gate[-2:] != (NONE, NONE) for gate in gates) else len(headings) - 2
        yield table(headings[:said], [gate[:said] for gate in gates])


def _accounting(runs: Sequence[KeptRun]) -> Iterator[tuple[str, ...]]:
    def row(what: str, values: Sequence[Any], form: str = "{:,}") -> tuple[str, ...]:
        return (what, *(NONE if value is None else form.format(value) for value in values))

    ends = [run.summary or {} for run in runs]
    for what in ("sent", "trained", "refused", "lost"):
        yield row(f"batches {what}", [end.get("batches", {}).get(what) for end in ends])
    yield row("seconds", [end.get("seconds") for end in ends], "{:,.1f}")
    yield row("samples/s", [end.get("samples_per_s") for end in ends], "{:,.0f}")
    yield ("gates made anew", *(str(sum(end.get("restarts", {}).values())) for end in ends))
    yield ("taken up again", *(str(run.resumed) for run in runs))
    yield ("ended", *("yes" if run.summary else "no: it is at work, or was killed" for run in runs))
    for reason in dict.fromkeys(reason for run in runs for reason in run.refused):
        yield row(f"refused: {reason}", [run.refused[reason] for run in runs])


def _sentinels(runs: Sequence[KeptRun]) -> Iterator[tuple[str, ...]]:
    for run in runs:
        for name, told in (run.summary or {}).get("sentinels", {}).items():
            scores = ", ".join(f"{score} {_number(value)}" for score, value in told["scores"].items())
            samples, seconds = f"{told['samples']:,}", f"{told['seconds']:,.1f}"
            yield run.name, name, str(told["rounds"]), _number(told["loss"]), scores, samples, seconds


def _gates(runs: Sequence[KeptRun]) -> Iterator[tuple[str, ...]]:
    for run in runs:
        for gate in (run.summary or {}).get("gates", []):
            found = gate.get("diagnosis") or {}
            yield (
                run.name,
                str(gate["name"]),
                f"{gate['version']:,}",
                f"{gate['staleness_mean']:.2f}",
                str(gate["staleness_max"]),
                _number(found.get("cosine_mean")),
                _number(found.get("correction_mean")),
            )


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _timelines(runs: Sequence[KeptRun]) -> Iterator[str]:
    for run in runs:
        if run.spans:
            yield svg(run.spans, run.name, time="")
        else:
            yield paragraph(f"{run.name} has kept none.")


def _settings(runs: Sequence[KeptRun]) -> Iterator[str]:
    """Those that differ, and all of them to be unfolded."""
    if len(runs) > 1:
        differ = list(_differing([run.settings for run in runs]))
        yield "<h3>that differ</h3>"
        yield _columns(runs, differ) if differ else paragraph("None.")
    every = list(_rows([run.settings for run in runs]))
    yield f"<details><summary>all</summary>{_columns(runs, every)}</details>"


def _environment(runs: Sequence[KeptRun]) -> Iterator[str]:
    yield _columns(runs, list(_rows([run.environment for run in runs])))


def _columns(runs: Sequence[KeptRun], rows: Sequence[Sequence[str]]) -> str:
    return table(("", *(run.name for run in runs)), rows)


def _rows(tables: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The name, then what each has under it."""
    for name in dict.fromkeys(name for each in tables for name in each):
        yield (name, *(_said(each.get(name)) for each in tables))


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or NONE
    return NONE if value is None else str(value)


def _differing(tables: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    return (row for row in _rows(tables) if len(set(row[1:])) > 1)
