"""What shows or keeps a session as it goes: a view, of which a new kind is one new file."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from akkordeon.core.errors import explain
from akkordeon.session.session import Session

__all__ = ["PATIENCE_S", "FailSafeView", "TimedView", "View"]

PATIENCE_S = 0.2
"""How long a look waits for actors that are in the middle of something; they answer later."""


class View:
    """Is told every record of a session, between entering and leaving it; overrides what it cares for.

    A follower calls it from one thread at a time. It must not raise; see :class:`FailSafeView`.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last that is called."""

    def tell(self, record: Any) -> None:
        """A record of ``akkordeon.core.reports`` has come."""

    def note(self, sentence: str) -> None:
        """There is something to say that is no record."""

    def look(self, session: Session, at_once: bool = False) -> None:
        """Called often, whether there is time to look or not, and ``at_once`` when all has ended."""


class TimedView(View):
    """A view that takes a look now and then.

    Args:
        every_s: least time between two looks.
        now_s: the clock.
    """

    def __init__(self, every_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._now_s = now_s
        self._looked_s = float("-inf")

    def look(self, session: Session, at_once: bool = False) -> None:
        """Take a look, if it is time."""
        if at_once or self._now_s() - self._looked_s >= self._every_s:
            self._looked_s = self._now_s()
            self.take(session)

    def take(self, session: Session) -> None:
        """Take a look: what a kind of view overrides."""


class FailSafeView(View):
    """A view whose failure is told once, and ends nothing but itself: a terminal that is gone, a full disk.

    Args:
        view: what may fail.
        what: it is, in words.
        warn: takes the sentence about it.
    """

    def __init__(self, view: View, what: str, warn: Callable[[str], None]) -> None:
        self._view = view
        self._what = what
        self._warn = warn
        self.failed = False

    def __enter__(self) -> Self:
        self._try(self._view.__enter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._try(lambda: self._view.__exit__(kind, error, trace))

    def tell(self, record: Any) -> None:
        """Show a record, if it still can."""
        self._try(lambda: self._view.tell(record))

    def note(self, sentence: str) -> None:
        """Show a sentence, or have it told otherwise."""
        self._try(lambda: self._view.note(sentence))
        if self.failed:
            self._say(sentence)

    def look(self, session: Session, at_once: bool = False) -> None:
        """Look, if it still can."""
        self._try(lambda: self._view.look(session, at_once))

    def _try(self, show: Callable[[], Any]) -> None:
        if self.failed:
            return
        try:
            show()
        except Exception as error:  # whatever its own libraries raise
            self.failed = True
            self._say(f"{self._what} has failed and is left out from now on ({explain(error)})")

    def _say(self, sentence: str) -> None:
        with suppress(Exception):  # there may be nobody left to hear it
            self._warn(sentence)
