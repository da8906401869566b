"""Has gates tell how they are now and then, where sinks would else hear of it at the end alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from akkordeon.session.session import Session
from akkordeon.watch.sinks.sink import GATE_EVERY_S
from akkordeon.watch.view import PATIENCE_S, TimedView

__all__ = ["GateAsker"]


class GateAsker(TimedView):
    """A view that shows nothing: what gates answer comes to all who watch the session.

    Args:
        now_s: the clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(GATE_EVERY_S, now_s)

    def look(self, session: Session, at_once: bool = False) -> None:
        """Ask, if it is time; at the end gates tell of themselves."""
        if not at_once:
            super().look(session)

    def take(self, session: Session) -> None:
        """Ask."""
        session.status(PATIENCE_S)
