"""Following a session: its records go to views, on the thread of whoever waits or on one of its own."""

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


class _Feed:
    """Keeps what is reported until the thread that follows hands it to the views."""

    def __init__(self, session: Session, views: Sequence[View]) -> None:
        self._session = session
        self._views = views
        self._records: SimpleQueue[Any] = SimpleQueue()
        session.subscribe(self._records.put)

    def turn(self, at_once: bool = False) -> None:
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


class Follower:
    """Follows a session to its end: made before anything is attached, so that it misses nothing.

    Args:
        session: what to follow.
        views: who is told every record, and may look. None of them may raise; see :class:`FailSafeView`.
    """

    def __init__(self, session: Session, views: Sequence[View]) -> None:
        self._session = session
        self._views = views
        self._feed = _Feed(session, views)

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
            self._feed.turn()
            if answered < min(signals.count, 2):
                answered += 1
                self._stop() if answered == 1 else self._session.close()
        self._feed.turn(at_once=True)
        try:
            end.result()
        except SessionClosedError:
            if answered < 2:
                raise

    def _stop(self) -> None:
        for view in self._views:
            view.note("stopping with what is reached: a last validation; Ctrl-C again ends at once")
        for attachment in self._session.attachments:
            if attachment.role.trains:
                attachment.detach()


class BackgroundFollower:
    """Follows a session on a thread of its own, until it is closed.

    Args:
        session: nothing should be attached yet, or the beginning is missed.
        view: used by that thread alone; if it fails, that is told on stderr and harms nobody.
    """

    def __init__(self, session: Session, view: View) -> None:
        self._view = FailSafeView(view, "what shows the session", partial(print, file=sys.stderr))
        self._feed = _Feed(session, [self._view])
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="akkordeon-show", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show the last of it, and end; doing it twice does nothing."""
        self._end.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_S)

    def _follow(self) -> None:
        with self._view:
            while not self._end.wait(POLL_S):
                self._feed.turn()
            self._feed.turn(at_once=True)
