"""Following a session to its end from one thread: what is reported is told, and a signal ends it gently."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from akkordeon.core.errors import SessionClosedError, explain
from akkordeon.session.session import Session

__all__ = ["Careful", "Follower", "Interrupts", "View"]

POLL_S = 0.1
"""Time between two turns of the thread that follows."""


class View(Protocol):
    """What shows a session to people, between entering and leaving it."""

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...

    def tell(self, record: Any) -> None:
        """Show a record."""

    def note(self, sentence: str) -> None:
        """Show a sentence that is no record."""

    def look(self, session: Session, at_once: bool = False) -> None:
        """Called often, whether there is time to look or not, and ``at_once`` when all has ended."""


class Careful:
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


class Interrupts:
    """Counts Ctrl-C, SIGTERM and SIGHUP, instead of having them end the program wherever it happens to be.

    Outside the main thread, where Python has no signals, it counts nothing. A SIGHUP that is ignored, as
    ``nohup`` has it, stays ignored.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is None or (name != "SIGINT" and signal.getsignal(number) is signal.SIG_IGN):
                    continue
                self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number


class Follower:
    """Follows a session: made before anything is attached, so that it misses nothing.

    Args:
        session: what to follow.
        views: who is told every record, and may look. None of them may raise; see :class:`Careful`.
    """

    def __init__(self, session: Session, views: Sequence[View]) -> None:
        self._session = session
        self._views = views
        self._records: SimpleQueue[Any] = SimpleQueue()
        session.subscribe(self._records.put)

    def until_end(self, interrupts: Interrupts) -> None:
        """Show the session until everything has ended.

        The first signal has the trainers stop, which leads to a last validation; the second closes the
        session.

        Raises:
            ActorFailedError: as ``session.wait()``.
        """
        with ThreadPoolExecutor(1, "akkordeon-wait") as pool:
            end = pool.submit(self._session.wait)
            try:
                self._turns(end, interrupts)
            except BaseException:
                self._session.close()  # or the pool would wait for the training
                raise

    def _turns(self, end: Future[None], interrupts: Interrupts) -> None:
        answered = 0
        while not wait([end], POLL_S).done:
            self._tell()
            self._look()
            if answered < min(interrupts.count, 2):
                answered += 1
                self._stop() if answered == 1 else self._session.close()
        self._tell()
        self._look(at_once=True)
        try:
            end.result()
        except SessionClosedError:
            if answered < 2:
                raise

    def _stop(self) -> None:
        for view in self._views:
            view.note("stopping with what is reached: a last validation; Ctrl-C again ends at once")
        for attachment in self._session.attachments:
            if attachment.role == "train":
                attachment.detach()

    def _tell(self) -> None:
        while True:
            try:
                record = self._records.get_nowait()
            except Empty:
                return
            for view in self._views:
                view.tell(record)

    def _look(self, at_once: bool = False) -> None:
        for view in self._views:
            view.look(self._session, at_once)
