"""The live view in a notebook: the session's table, drawn anew in its place, and lines below it.

It needs nothing but IPython, which every notebook has; with ipywidgets there is a view with bars.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from akkordeon.core.notebook.html import preformatted
from akkordeon.session.session import Session
from akkordeon.watch.lines import LineView
from akkordeon.watch.view import PATIENCE_S, TimedView

__all__ = ["NotebookView"]

EVERY_S = 0.5
"""Time between two looks at the session."""

LINES_MAX = 30
"""So many lines are shown, the latest."""


class NotebookView(TimedView):
    """Draws how a session goes; a context manager. All its methods are for one thread.

    Args:
        now_s: the clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(EVERY_S, now_s)
        self._shown: deque[str] = deque(maxlen=LINES_MAX)
        self._lines = LineView(self._shown.append)
        self._handle: Any = None

    def __enter__(self) -> Self:
        from IPython.display import HTML, display

        self._handle = display(HTML(""), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)

    def tell(self, record: Any) -> None:
        """Keep the line of a record for the next look."""
        self._lines.tell(record)

    def note(self, sentence: str) -> None:
        """Keep a sentence likewise."""
        self._lines.note(sentence)

    def take(self, session: Session) -> None:
        """Draw anew."""
        session.status(PATIENCE_S)  # what is heard is in the session's table
        from IPython.display import HTML

        if self._handle is not None:  # outside of a notebook there is none
            self._handle.update(HTML(session._repr_html_() + preformatted("\n".join(self._shown))))
