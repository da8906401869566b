"""What an engine in real time is to do later or meanwhile, each on a thread; nothing once it stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

__all__ = ["Timers"]


class Timers:
    """Timers that can all be called off.

    Args:
        changed: held while something is done, and notified then.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._waiting: set[threading.Timer] = set()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done in so many seconds."""
        timer = threading.Timer(seconds, lambda: self._fire(timer, do))
        self._start(timer)

    def meanwhile(self, do: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """Have something done that takes long, while nothing is held; ``then`` is told what it raised."""

        def work() -> None:
            failure = None
            try:
                do()
            except Exception as error:
                failure = error
            self._fire(timer, partial(then, failure))

        timer = threading.Timer(0.0, work)
        self._start(timer)

    def _start(self, timer: threading.Timer) -> None:
        timer.daemon = True
        with self._changed:
            self._waiting.add(timer)
        timer.start()

    def _fire(self, timer: threading.Timer, do: Callable[[], None]) -> None:
        with self._changed:
            if timer in self._waiting:
                self._waiting.discard(timer)
                do()
                self._changed.notify_all()

    def stop(self) -> None:
        """Have nothing more done; when this returns no timer is left, but one that calls this itself."""
        with self._changed:
            called_off, self._waiting = self._waiting, set()
        for timer in called_off:
            timer.cancel()
            if timer is not threading.current_thread():
                timer.join()
