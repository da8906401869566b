"""Following a session to its end from one thread: what is reported is told, and Ctrl-C ends it gently."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from akkordeon.errors import SessionClosedError
from akkordeon.session import Session

__all__ = ["Follower", "Interrupts", "View"]

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


class Interrupts:
    """Counts Ctrl-C, instead of having it raise wherever the program happens to be.

    Outside the main thread, where Python has no signals, it counts nothing.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


class Follower:
    """Follows a session: made before anything is attached, so that it misses nothing.

    Args:
        session: what to follow.
        view: shows it.
        tells: who else is told every record.
    """

    def __init__(self, session: Session, view: View, tells: Sequence[Callable[[Any], None]] = ()) -> None:
        self._session = session
        self._view = view
        self._tells = (view.tell, *tells)
        self._records: SimpleQueue[Any] = SimpleQueue()
        session.subscribe(self._records.put)

    def until_end(self, interrupts: Interrupts) -> None:
        """Show the session until everything has ended.

        The first Ctrl-C has the trainers stop, which leads to a last validation; the second closes the
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
            self._view.look(self._session)
            if answered < min(interrupts.count, 2):
                answered += 1
                self._stop() if answered == 1 else self._session.close()
        self._tell()
        self._view.look(self._session, at_once=True)
        try:
            end.result()
        except SessionClosedError:
            if answered < 2:
                raise

    def _stop(self) -> None:
        self._view.note("stopping with what is reached: a last validation; Ctrl-C again ends at once")
        for attachment in self._session.attachments:
            if attachment.role == "train":
                attachment.detach()

    def _tell(self) -> None:
        while True:
            try:
                record = self._records.get_nowait()
            except Empty:
                return
            for tell in self._tells:
                tell(record)
