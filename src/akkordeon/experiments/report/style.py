"""How figures look: readable without colour, and the same file each time."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akkordeon.core.errors import DataError, RecipeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PLAIN", "STYLES", "as_label", "look_of", "require_matplotlib", "save_figure"]

STYLES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"),
    ("#000000", "-", "x"),
    ("#e69f00", "--", "v"),
    ("#56b4e9", "-.", "P"),
)
"""Colours that nearly all can tell apart (Okabe and Ito 2008), and a line and a mark for each beside."""

DASHES = ("-", "--", "-.", ":")

PLAIN: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "akkordeon"}
"""Text stays text in an SVG file, and what is the same gives the same file."""

DOTS_PER_INCH = 150


def require_matplotlib() -> None:
    """Refuse to draw without it.

    Raises:
        RecipeError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RecipeError("figures need matplotlib, which is not here: pip install 'akkordeon[figures]'")


def as_label(name: str) -> str:
    """A name as matplotlib writes it: ``$`` begins no formula, and ``_`` hides no entry of a legend."""
    text = " ".join(name.split()).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def look_of(colour: int, dashes: int) -> dict[str, Any]:
    """The look of a line by two numbers: of its colour and mark, and of its dashes."""
    name, _, mark = STYLES[colour % len(STYLES)]
    return {"color": name, "marker": mark, "markersize": 4, "linestyle": DASHES[dashes % len(DASHES)]}


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG and PNG; the files.

    Raises:
        DataError: they cannot be written.
    """
    from matplotlib import rc_context

    files = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    try:
        with rc_context(PLAIN):
            for file in files:
                metadata = {"Date": None} if file.suffix == ".svg" else None
                figure.savefig(file, dpi=DOTS_PER_INCH, metadata=metadata)
    except OSError as error:
        raise DataError(f"{folder} cannot be written to: {error.strerror or error}") from error
    return files
