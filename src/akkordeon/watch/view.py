"""What shows or keeps a session as it goes: a view, of which a new kind is one new file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from akkordeon.core.errors import explain
from akkordeon.session.session import Session

__all__ = ["FailSafeView", "View"]


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
