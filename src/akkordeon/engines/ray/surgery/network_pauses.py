"""Who may begin while the row of a network that runs on its own is being changed.

    steady ──begin_pause──▶ pausing ──is_paused──▶ rewiring ──end──▶ steady

Sentinels are in processes of many sessions. One that is registered and has not begun keeps the row from being
changed: it was made for the row that there is. While the gates are told their places nobody is registered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from akkordeon.core.messages import Message
from akkordeon.core.surgery.messages import Pause, Resume
from akkordeon.engines.ray.members import Members

__all__ = ["NetworkPauses"]

Given = TypeVar("Given")


class NetworkPauses:
    """Has the sentinels of all sessions pause and go on. Its methods may be called from any thread.

    Args:
        members: knows the sentinels.
        send: carries a message to one; it does not wait.

    Attributes:
        is_rewiring: whether nothing is under way, and nobody may come.
    """

    def __init__(self, members: Members, send: Callable[[str, Message], None]) -> None:
        self.is_rewiring = False
        self._members = members
        self._send = send
        self._lock = threading.RLock()
        self._is_pausing = False
        self._at_rest: set[str] = set()

    def admit(self, register: Callable[[], Given]) -> Given | None:
        """Have a sentinel registered, if it may come now."""
        with self._lock:
            return None if self.is_rewiring else register()

    def begin_sentinel(self, address: str) -> None:
        """A sentinel has been told to begin."""
        with self._lock:
            self._members.begin(address)
            if self._is_pausing:
                self._send(address, Pause())

    def welcome(self, address: str, row: tuple[str, ...]) -> None:
        """A sentinel at work is known again, which may have been told to pause, or know another row."""
        with self._lock:
            self._send(address, Pause() if self._is_pausing else Resume(row))

    def begin_pause(self) -> None:
        """Have nobody begin anything new."""
        with self._lock:
            self._is_pausing = True
            self._at_rest.clear()
            for entry in self._members.entries():
                if entry.has_begun:
                    self._send(entry.address, Pause())

    def at_rest(self, address: str) -> None:
        """A sentinel has nothing under way."""
        with self._lock:
            self._at_rest.add(address)

    def is_paused(self) -> bool:
        """Whether nothing is under way; from then on nobody comes until the pause is over."""
        with self._lock:
            if all(entry.address in self._at_rest for entry in self._members.entries()):
                self.is_rewiring = True
            return self.is_rewiring

    def end(self, row: tuple[str, ...]) -> None:
        """Have all go on, with this row."""
        with self._lock:
            self._is_pausing = self.is_rewiring = False
            for entry in self._members.entries():
                self._send(entry.address, Resume(row))
