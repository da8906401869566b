"""Who of several processes answers, and who has owed an answer for how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from akkordeon.engines.ray.cluster.connection import require_ray
from akkordeon.engines.ray.cluster.waits import FETCH_S

__all__ = ["HEARTBEAT_S", "SILENT_S", "Heartbeats", "Lost"]

HEARTBEAT_S = 0.5
"""How often each process is asked for a sign of life."""

SILENT_S = 30.0
"""How long a process may owe one: then it counts as stuck or cut off, though it may be there still."""


@dataclass(frozen=True)
class Lost:
    """Stands for the answer of a process that will give none; ``error`` is what Ray says of it."""

    error: Exception


class Heartbeats:
    """Asks processes, one question at a time each. One thread asks; any may look on, and drop a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[Any, str] = {}  # name of the process, by what it will answer
        self._since_s: dict[str, float] = {}  # when each that owes an answer was asked
        self._heard_s: dict[str, float] = {}

    def ask(self, name: str, question: Callable[[], Any], every_s: float = 0.0) -> None:
        """Ask a process that owes no answer, and gave its last so long ago."""
        now_s = time.monotonic()
        with self._lock:
            if name not in self._since_s and now_s - self._heard_s.get(name, -every_s) >= every_s:
                self._asked[question()] = name
                self._since_s[name] = now_s

    def owed(self) -> list[Any]:
        """What has been asked and not answered."""
        with self._lock:
            return list(self._asked)

    def answers(self, timeout_s: float, all_of_them: bool = False) -> list[tuple[str, Any]]:
        """Who answered what, once anybody does, or all of them have; :class:`Lost` by who is dead."""
        ray = require_ray()
        asked = self.owed()
        if not asked:
            return []
        ready, _ = ray.wait(asked, num_returns=len(asked) if all_of_them else 1, timeout=timeout_s)
        found: list[tuple[str, Any]] = []
        for ref in ready:
            with self._lock:
                name = self._asked.pop(ref, None)
                if name is None:  # it was dropped meanwhile
                    continue
                self._since_s.pop(name, None)
                self._heard_s.pop(name, None)
            try:
                found.append((name, ray.get(ref, timeout=FETCH_S)))
                with self._lock:
                    self._heard_s[name] = time.monotonic()
            except ray.exceptions.ActorUnavailableError:
                continue  # it may come back; if it does not, Ray says that it died
            except ray.exceptions.RayError as error:
                found.append((name, Lost(error)))
        return found

    def excuse(self, name: str) -> None:
        """Count the time of a process from now on."""
        with self._lock:
            if name in self._since_s:
                self._since_s[name] = time.monotonic()

    def drop(self, name: str) -> None:
        """Expect no answer of a process any more."""
        with self._lock:
            self._asked = {ref: asked for ref, asked in self._asked.items() if asked != name}
            self._heard_s.pop(name, None)
            self._since_s.pop(name, None)

    def silent(self, for_s: float) -> list[str]:
        """Who owes an answer for longer than that."""
        now_s = time.monotonic()
        with self._lock:
            return [name for name, since_s in self._since_s.items() if now_s - since_s > for_s]
