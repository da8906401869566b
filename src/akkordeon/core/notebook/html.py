"""Tables and titles as HTML, in which no name can break anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["card", "paragraph", "preformatted", "table"]

STYLE = (
    "<style>.akkordeon{font-family:Helvetica,Arial,sans-serif;font-size:14px}"
    ".akkordeon table{border-collapse:collapse;margin:.5em 0}"
    ".akkordeon th,.akkordeon td{padding:.2em .8em;text-align:right;border-bottom:1px solid #8884}"
    ".akkordeon th:first-child,.akkordeon td:first-child{text-align:left}"
    ".akkordeon tr.marked{font-weight:bold}</style>"
)


def card(title: str, *parts: str) -> str:
    """Something to show, with its style.

    Args:
        title: as text.
        parts: as HTML.
    """
    return f'<div class="akkordeon">{STYLE}<b>{escape(title)}</b>{"".join(parts)}</div>'


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def preformatted(text: str) -> str:
    """Lines of text as they are; nothing where there are none."""
    return f"<pre>{escape(text)}</pre>" if text else ""


def table(headings: Sequence[object], rows: Iterable[Sequence[object]], marked: Iterable[int] = ()) -> str:
    """A table; what is in it is shown as text, whatever it is.

    Args:
        headings: of its columns.
        rows: as many cells in each.
        marked: numbers of rows that stand out.
    """
    marks = set(marked)
    head = "".join(f"<th>{_text(heading)}</th>" for heading in headings)
    body = "".join(_row(row, i in marks) for i, row in enumerate(rows))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(cells: Sequence[object], is_marked: bool) -> str:
    shown = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
    return f'<tr class="marked">{shown}</tr>' if is_marked else f"<tr>{shown}</tr>"


def _text(cell: object) -> str:
    return escape(str(cell)).replace("\n", "<br>")
