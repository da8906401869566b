"""What shows a session to whoever runs it: a script on a terminal or in a pipe, or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from akkordeon.session.session import Session
from akkordeon.watch.follower import BackgroundFollower
from akkordeon.watch.lines import LineView
from akkordeon.watch.notebook.notebook_view import NotebookView
from akkordeon.watch.view import View

__all__ = ["show", "view_for"]


def view_for(write: Callable[[str], None], warn: Callable[[str], None], live: bool = True) -> View:
    """Something live on a terminal or in a notebook; lines elsewhere.

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
        if console.is_jupyter:
            return NotebookView()
    return LineView(write, warn)


def show(session: Session, live: bool = True) -> BackgroundFollower:
    """Show a session from a thread of its own, until that is closed.

    Args:
        session: nothing should be attached yet, or the beginning is missed.
        live: as :func:`view_for` has it.
    """
    return BackgroundFollower(session, view_for(print, partial(print, file=sys.stderr), live))
