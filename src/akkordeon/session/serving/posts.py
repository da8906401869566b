"""A source of examples that others bring, as those who post them to a server do.

put ─▶ waiting ─▶ given ─▶ the stream
          ▲         │
          └─────────┘ what the stream had not taken note of, once it goes on
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from akkordeon.core.checks import require_whole
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import PlainState
from akkordeon.core.streams.messages import Key, Labelled

__all__ = ["Posts"]

Example = tuple[Payload, Payload] | Labelled


class Posts:
    """A source for :meth:`Sentinel.stream` that waits for examples, and gives them in the order they came.

    What comes twice under one key is learned from once. Of several readers the latest has all, and those
    before it end. A stream that failed and goes on is given again what was on its way to it. What is brought
    after one has ended and before another is attached may be lost, up to as many as the first had in flight;
    a server takes none then. What waits here when the process dies is lost.

    Args:
        max_waiting: examples that wait to be read; the latest of those that were given are kept likewise.
        target_dtype: of targets that come as JSON; if not given, whole numbers are int64, and others float32.

    Raises:
        RecipeError: none may wait.
    """

    def __init__(self, max_waiting: int = 1000, target_dtype: torch.dtype | None = None) -> None:
        require_whole("max_waiting", max_waiting)
        self._max_waiting = max_waiting
        self.target_dtype = target_dtype
        self._name = uuid.uuid4().hex  # by which it knows its own states
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[int, Example]] = deque()  # and their numbers
        self._given: deque[tuple[int, Example]] = deque(maxlen=max_waiting)
        self._latest = 0  # the number of what was given last
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
            example = (x, y) if key is None else Labelled(key, x, y)
            self._waiting.append((next(self._numbers), example))
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
        """Which example it gave last."""
        return {"posts": self._name, "latest": self._latest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after that example, where it was one of these; those of another process are not here."""
        with self._changed:
            self._take_over(None)
            if state.get("posts") != self._name:
                return
            self._latest = state["latest"]
            examples = [*self._given, *self._waiting]
            self._given.clear()
            self._given.extend(each for each in examples if each[0] <= self._latest)
            self._waiting = deque(each for each in examples if each[0] > self._latest)

    def __iter__(self) -> Iterator[Example]:
        with self._changed:
            self._take_over(me := object())
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed or self._reader is not me)
                if not self._waiting or self._reader is not me:
                    return
                self._given.append(self._waiting.popleft())
                self._latest, example = self._given[-1]
            yield example

    def _take_over(self, reader: object) -> None:
        """Another reads from now on; one before, which may wait, has ended."""
        self._reader = reader
        self._changed.notify_all()
