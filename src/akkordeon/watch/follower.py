"""Following a session: its records go to views, on the thread of whoever waits or in the background."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from akkordeon.core.errors import SessionClosedError
from akkordeon.session.session import Session
from akkordeon.watch.signals import SignalCounter
from akkordeon.watch.view import FailSafeView, View

__all__ = ["BackgroundFollower", "Follower"]

POLL_S = 0.1
"""Time between two turns of the thread that follows."""

END_S = 5.0
"""How long the end of a session waits for the last picture."""


class Follower:
    """Follows a session to its end: made before anything is attached, so that it misses nothing.

    Args:
        session: what to follow.
        views: who is told every record, and may look. None of them may raise; see :class:`FailSafeView`.
    """

    def __init__(self, session: Session, views: Sequence[View]) -> None:
        self._session = session
        self._views = views
        self._records: SimpleQueue[Any] = SimpleQueue()
        session.subscribe(self._records.put)

    def until_end(self, signals: SignalCounter) -> None:
        """Show the session until everything has ended.

        The first signal has the trainers stop, which leads to a last validation; the second closes the
        session.

        Raises:
            ActorFailedError: as ``session.wait()``.
        """
        with ThreadPoolExecutor(1, "akkordeon-wait") as pool:
            end = pool.submit(self._session.wait)
            try:
                self._turns(end, signals)
            except BaseException:
                self._session.close()  # or the pool would wait for the training
                raise

    def _turns(self, end: Future[None], signals: SignalCounter) -> None:
        answered = 0
        while not wait([end], POLL_S).done:
            self._turn()
            if answered < min(signals.count, 2):
                answered += 1
                self._stop() if answered == 1 else self._session.close()
        self._turn(at_once=True)
        try:
            end.result()
        except SessionClosedError:
            if answered < 2:
                raise

    def _turn(self, at_once: bool = False) -> None:
        """Tell the views all that has come, and have them look."""
        while True:
            try:
                record = self._records.get_nowait()
            except Empty:
                break
            for view in self._views:
                view.tell(record)
        for view in self._views:
            view.look(self._session, at_once)

    def _stop(self) -> None:
        for view in self._views:
            view.note("stopping with what is reached: a last validation; Ctrl-C again ends at once")
        for attachment in self._session.attachments:
            if attachment.role.trains:
                attachment.detach()


class BackgroundFollower:
    """Follows a session until it is closed: who has waited for the session has been shown what came before.

    Args:
        session: nothing should be attached yet, or the beginning is missed.
        view: used by one thread at a time; if it fails, that is told on stderr and harms nobody.
    """

    def __init__(self, session: Session, view: View) -> None:
        self._session = session
        self._view = FailSafeView(view, "what shows the session", partial(print, file=sys.stderr))
        self._lock = threading.Lock()  # held by who uses the view
        self._begun, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="akkordeon-show", daemon=True)
        self._thread.start()
        self._begun.wait()
        self._subscription = session.subscribe(self._tell)

    def close(self) -> None:
        """Show the last of it, and end; doing it twice does nothing."""
        if self._subscription is not None:
            self._subscription.drain(END_S)
        self._end.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_S)

    def _tell(self, record: Any) -> None:
        with self._lock:
            if not self._end.is_set():
                self._view.tell(record)

    def _look(self) -> None:
        with self._view:
            self._begun.set()
            while not self._end.wait(POLL_S):
                with self._lock:
                    self._view.look(self._session, False)
            with self._lock:
                self._view.look(self._session, True)
