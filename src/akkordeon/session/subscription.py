"""The watchers of a session, and the queue and thread between each and what is reported."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from akkordeon.core.errors import RecipeError
from akkordeon.core.recovery.reports import RecoveryReport

__all__ = ["Subscription", "Watchers"]

QUEUED_MAX = 10_000
"""Records that wait for a watcher at most; what comes then is not for it."""

JOIN_S = 1.0
"""How long the end waits for the watcher's thread, which is idle or stuck."""

DRAIN_S = 2.0
"""How long the end of a wait waits for watchers to see what was reported."""


class Subscription:
    """Hands records to a watcher, one at a time, on a thread of its own: what it does is nobody else's wait.

    Args:
        watch: is called with every record; if it raises, it is called no more.

    Attributes:
        dropped: records it was not given because too many were waiting.
    """

    def __init__(self, watch: Callable[[Any], None]) -> None:
        self.dropped = 0
        self._watch = watch
        self._records: deque[Any] = deque()
        self._changed = threading.Condition()
        self._put = 0  # records taken in so far, and
        self._seen = 0  # those that the watcher is done with
        self._stuck_at = -1  # what it had seen when somebody waited for it in vain
        self._over = False
        self._thread = threading.Thread(target=self._work, name="akkordeon-watcher", daemon=True)
        self._thread.start()

    def put(self, record: Any) -> None:
        """Have the watcher see a record; returns at once."""
        with self._changed:
            if self._over:
                return
            if len(self._records) >= QUEUED_MAX:
                self.dropped += 1
                return
            self._records.append(record)
            self._put += 1
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Wait until the watcher has seen all that was put before; not for one that is still stuck."""
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            until = self._put
            if self._stuck_at != self._seen and not self._changed.wait_for(
                lambda: self._over or self._seen >= until, timeout_s
            ):
                self._stuck_at = self._seen

    def end(self) -> None:
        """Hand over nothing more."""
        from_within = threading.current_thread() is self._thread
        with self._changed:
            self._over = True
            self.dropped += 0 if from_within else len(self._records)
            self._records.clear()
            self._changed.notify_all()
        if not from_within and self._stuck_at != self._seen:
            self._thread.join(JOIN_S)
        if self.dropped:
            logging.getLogger(__name__).warning(
                "a watcher of the session missed %d records: it was too slow for them", self.dropped
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._records or self._over)
                if self._over:
                    return
                record = self._records.popleft()
            try:
                self._watch(record)
            except BaseException:  # it must not harm who reported, nor end this thread without a word
                logging.getLogger(__name__).exception("a watcher of the session raised and was unsubscribed")
                with self._changed:
                    self._over = True
                    self._records.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._seen += 1
                self._changed.notify_all()


class Watchers:
    """Everybody who watches a session."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._inline: list[Callable[[Any], None]] = []

    def add(self, watcher: Callable[[Any], None], *, inline: bool) -> Subscription | None:
        """One more; ``inline``: whoever reports is to call it.

        Raises:
            RecipeError: it cannot be called.
        """
        if not callable(watcher):
            raise RecipeError(f"a watcher is a function of a record, got {type(watcher).__name__}")
        if inline:
            self._inline.append(watcher)
            return None
        subscription = Subscription(watcher)
        self._subscriptions.append(subscription)
        return subscription

    def tell(self, record: Any) -> None:
        """Have all see a record.

        Raises:
            KeyboardInterrupt: Ctrl-C, which broke into a watcher on the main thread.
        """
        if isinstance(record, RecoveryReport):  # the supervisor's alone: a slow watcher would keep weights
            return
        for subscription in list(self._subscriptions):
            subscription.put(record)
        for watcher in list(self._inline):
            try:
                watcher(record)
            except BaseException as error:  # it must not harm the actor that reported
                if (
                    isinstance(error, KeyboardInterrupt)
                    and threading.current_thread() is threading.main_thread()
                ):
                    raise
                with suppress(ValueError):  # where it raised on another thread, too
                    self._inline.remove(watcher)
                logging.getLogger(__name__).exception("a watcher of the session raised and was unsubscribed")

    def drain(self) -> None:
        """Let them see what was reported, within bounds."""
        deadline_s = time.monotonic() + DRAIN_S
        for subscription in list(self._subscriptions):
            subscription.drain(max(0.0, deadline_s - time.monotonic()))

    def end(self) -> None:
        """Hand over nothing more."""
        for subscription in self._subscriptions:
            subscription.end()
