"""What an engine in real time is to do later, each thing on a timer of its own; nothing once it stops."""

from __future__ import annotations

import threading
from collections.abc import Callable

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
