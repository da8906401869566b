"""Has gates tell how they are now and then, where sinks would else hear of it at the end alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from akkordeon.session.session import Session
from akkordeon.watch.sinks.sink import GATE_EVERY_S
from akkordeon.watch.view import View

__all__ = ["GateAsker"]

PATIENCE_S = 0.2
"""How long it waits for actors that are in the middle of something; they answer later."""


class GateAsker(View):
    """A view that shows nothing: what gates answer comes to all who watch the session.

    Args:
        now_s: the clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._asked_s = float("-inf")

    def look(self, session: Session, at_once: bool = False) -> None:
        """Ask, if it is time; at the end gates tell of themselves."""
        if not at_once and self._now_s() - self._asked_s >= GATE_EVERY_S:
            self._asked_s = self._now_s()
            session.status(PATIENCE_S)
