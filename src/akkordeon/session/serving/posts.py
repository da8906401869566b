"""A source of examples that others bring, as those who post them to a server do."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import torch

from akkordeon.core.checks import require_whole
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import PlainState
from akkordeon.core.streams.messages import Answer, Key, Question

__all__ = ["Posts"]

Example = tuple[Payload, Payload]


class Posts:
    """A source for :meth:`Sentinel.stream` that waits for examples, and gives them in the order they came.

    What comes twice under one key is learned from once. Of several readers the latest has all, and those
    before it end. What waits here when the process dies is lost.

    Args:
        max_waiting: examples that wait to be read.
        target_dtype: of targets that come as JSON; if not given, whole numbers are int64, and others float32.

    Raises:
        RecipeError: none may wait.
    """

    def __init__(self, max_waiting: int = 1000, target_dtype: torch.dtype | None = None) -> None:
        require_whole("max_waiting", max_waiting)
        self._max_waiting = max_waiting
        self.target_dtype = target_dtype
        self._waiting: deque[tuple[Key | None, Example]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._reader: object = None  # the latest, who has what comes

    def put(self, x: Payload, y: Payload, key: Key | None = None) -> bool:
        """Bring an example, or a small batch of them; from any thread.

        Returns:
            Whether there was room for it; never after :meth:`close`.
        """
        with self._changed:
            if not self.has_room:
                return False
            self._waiting.append((key, (x, y)))
            self._changed.notify()
            return True

    def close(self) -> None:
        """Have the source end after what waits; from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def has_room(self) -> bool:
        """Whether one more can be brought."""
        return not self._closed and len(self._waiting) < self._max_waiting

    @property
    def waiting(self) -> int:
        """Examples that were not read yet."""
        return len(self._waiting)

    def state_dict(self) -> PlainState:
        """Nothing: what was read is here no more, and another reader goes on with what comes."""
        return {}

    def load_state_dict(self, state: PlainState) -> None:
        """Nothing is to be read again, or left out."""

    def __iter__(self) -> Iterator[Example | Question | Answer]:
        with self._changed:
            self._reader = me = object()
            self._changed.notify_all()  # one before, which may wait, has ended
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed or self._reader is not me)
                if not self._waiting or self._reader is not me:
                    return
                key, (x, y) = self._waiting.popleft()
            if key is None:
                yield x, y
            else:
                yield Question(key, x)
                yield Answer(key, y)
