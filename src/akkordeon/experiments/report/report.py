"""``ak.report``: runs that were kept, side by side, as a page, as figures and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.engines.timeline.drawing import svg
from akkordeon.experiments.report.figures import curves, staleness
from akkordeon.experiments.report.kept_run import KeptRun, load_runs
from akkordeon.experiments.report.page import body, page
from akkordeon.experiments.report.style import require_matplotlib, save_figure

__all__ = ["RunReport", "report"]

NAMED_MAX = 3


class RunReport:
    """Runs side by side.

    Args:
        runs: as they were kept.
    """

    def __init__(self, runs: Sequence[KeptRun]) -> None:
        self.runs = runs

    def __repr__(self) -> str:
        named = [run.name for run in self.runs[:NAMED_MAX]]
        more = [f"and {len(self.runs) - NAMED_MAX} more"] if len(self.runs) > NAMED_MAX else []
        return f"<RunReport: {', '.join(named + more)}>"

    def _repr_html_(self) -> str:
        """The report in a notebook."""
        return f'<div class="akkordeon">{body(self.runs)}</div>'

    @cached_property
    def html(self) -> str:
        """The whole page."""
        return page(self.runs)

    def save(self, path: str | Path) -> None:
        """Write the page, which needs no other file.

        Raises:
            DataError: it cannot be written.
        """
        _write(Path(path), self.html)

    def save_figures(self, folder: str | Path) -> list[Path]:
        """Write all figures, those of curves and of staleness as SVG and PNG, timelines as SVG.

        Args:
            folder: made if need be.

        Returns:
            The files.

        Raises:
            DataError: they cannot be written.
        """
        folder, files = Path(folder), list[Path]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"the folder {folder} cannot be made: {error.strerror or error}") from error
        for name, draw in (("curves", curves), ("staleness", staleness)):
            figure = draw(self.runs)
            if figure is not None:
                files += save_figure(figure, folder, name)
        for number, run in enumerate(self.runs, 1):
            if run.spans:
                files.append(folder / f"timeline-{number}.svg")
                _write(files[-1], svg(run.spans, run.name, time=""))
        return files


def report(*folders: str | Path) -> RunReport:
    """What runs came to, side by side; in a notebook it shows itself.

    Args:
        folders: what ``akkordeon train --out`` was given; a run may still be at work.

    Raises:
        DataError: there is no run in one of them.
        RecipeError: no folder is given, or matplotlib is not installed.
    """
    if not folders:
        raise RecipeError("a report is of one run or more: ak.report(folder, …)")
    require_matplotlib()
    return RunReport(load_runs([Path(folder) for folder in folders]))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
