"""Showing a session to whoever runs it: a script on a terminal or in a pipe, or a notebook."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from typing import Any

from akkordeon.session.session import Session
from akkordeon.watch.follower import POLL_S, Careful, View
from akkordeon.watch.lines import Lines

__all__ = ["Showing", "show", "view_for"]

END_S = 5.0
"""How long the end of a session waits for the last picture."""


def view_for(write: Callable[[str], None], warn: Callable[[str], None], live: bool = True) -> View:
    """Something live on a terminal, or in a notebook that can; lines elsewhere.

    Args:
        write: takes a line.
        warn: takes a warning.
        live: whether gates may be asked how they are, which no two runs do alike.
    """
    if live and (sys.stdout.isatty() or "ipykernel" in sys.modules):
        from rich.console import Console

        from akkordeon.watch.live_view import LiveView

        console = Console()
        if (console.is_terminal and not console.is_dumb_terminal) or (
            console.is_jupyter and find_spec("ipywidgets") is not None
        ):
            return LiveView(console)
    return Lines(write, warn)


def show(session: Session, live: bool = True) -> Showing:
    """Show a session from a thread of its own, until that is closed.

    Args:
        session: nothing should be attached yet, or the beginning is missed.
        live: as :func:`view_for` has it.
    """
    return Showing(session, view_for(print, partial(print, file=sys.stderr), live))


class Showing:
    """A view that looks at a session on a thread of its own.

    Args:
        session: to look at.
        view: used by that thread alone.
    """

    def __init__(self, session: Session, view: View) -> None:
        self._session = session
        self._view = Careful(view, "what shows the session", partial(print, file=sys.stderr))
        self._records: SimpleQueue[Any] = SimpleQueue()
        self._end = threading.Event()
        session.subscribe(self._records.put)
        self._thread = threading.Thread(target=self._show, name="akkordeon-show", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show the last of it, and end; doing it twice does nothing."""
        self._end.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_S)

    def _show(self) -> None:
        with self._view:
            while not self._end.wait(POLL_S):
                self._tell()
                self._view.look(self._session)
            self._tell()
            self._view.look(self._session, at_once=True)

    def _tell(self) -> None:
        while True:
            try:
                self._view.tell(self._records.get_nowait())
            except Empty:
                return
