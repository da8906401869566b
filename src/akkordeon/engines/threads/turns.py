"""Turns at the random generator of the process, for workers that are at it at the same time."""

from __future__ import annotations

import threading
from collections import deque

from akkordeon.core.numerics.generator import GeneratorUse

__all__ = ["TURNS", "Turns"]


class Turns:
    """Lets those of one use in together, and those who must be alone one by one; first come, first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._use = GeneratorUse.NONE
        self._inside = 0

    def begin(self, use: GeneratorUse) -> None:
        """Wait until this use may begin."""
        me = object()
        with self._changed:
            self._queue.append(me)
            self._changed.wait_for(lambda: self._queue[0] is me and self._admits(use))
            self._queue.popleft()
            self._use = use
            self._inside += 1
            self._changed.notify_all()  # the next may be of the same use

    def end(self) -> None:
        """One who was inside is not any more."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def _admits(self, use: GeneratorUse) -> bool:
        return self._inside == 0 or (use is self._use and use is not GeneratorUse.ALONE)


TURNS = Turns()
"""One for all engines of the process, as there is one generator."""
