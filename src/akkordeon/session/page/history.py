"""What a browser that comes late is shown of before: curves, and a log. Both are bounded."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["History", "News"]

POINTS_MAX = 2000
"""Points of a curve; of one that grows longer the older half loses every second."""

CURVES_MAX = 200
"""Curves; those that had no point for longest are the first to go."""

LOG_MAX = 500
"""Entries of the log; the latest."""


@dataclass(frozen=True)
class News:
    """What has come since a number.

    Attributes:
        number: of the latest of it, to ask with the next time.
        curves: [seconds, value] pairs, by sentinel and what was measured.
        log: entries, the earliest first.
        is_anew: whether what was given before the number is of no use any more.
    """

    number: int
    curves: dict[str, dict[str, list[list[float]]]]
    log: list[dict[str, Any]]
    is_anew: bool = False


class History:
    """Curves and a log; any thread may add to them and read.

    Args:
        before_s: how long what is watched has been at work.
        now_s: the clock.
    """

    def __init__(self, before_s: float = 0.0, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._began_s = now_s() - before_s
        self._number = 0
        self._anew = 0  # the number at which all before it was forgotten
        self._curves: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
        self._log: deque[dict[str, Any]] = deque(maxlen=LOG_MAX)
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Since what is watched began."""
        return self._now_s() - self._began_s

    def point(self, who: str, measure: str, value: float, seconds: float | None = None) -> None:
        """Add to a curve; what is no finite number is left out.

        Args:
            who: was measured.
            measure: ``"loss"``, or the name of a score.
            value: of it.
            seconds: when, since the beginning; now if not given.
        """
        if not math.isfinite(value):
            return
        with self._lock:
            self._number += 1
            curve = self._curves[who, measure] = self._curves.pop((who, measure), [])
            curve.append((self._number, self.seconds if seconds is None else seconds, float(value)))
            if len(curve) > POINTS_MAX:
                del curve[1 : POINTS_MAX // 2 : 2]
            if len(self._curves) > CURVES_MAX:
                del self._curves[next(iter(self._curves))]

    def note(self, kind: str, who: str, text: str) -> None:
        """Add to the log.

        Args:
            kind: a word: came, went, failed, refused, recovered, changed, asked or noted.
            who: it is about.
            text: what happened, in words that may follow the name.
        """
        with self._lock:
            self._number += 1
            seconds = round(self.seconds, 1)
            entry = {"n": self._number, "seconds": seconds, "kind": kind, "who": who, "text": text}
            self._log.append(entry)

    def begin_anew(self) -> None:
        """Forget all: what is watched is another from now on."""
        with self._lock:
            self._number += 1
            self._anew = self._number
            self._curves.clear()
            self._log.clear()

    def since(self, number: int) -> News:
        """What has come after that number; 0 gives all there is."""
        curves: dict[str, dict[str, list[list[float]]]] = defaultdict(dict)
        with self._lock:
            for (who, measure), curve in self._curves.items():
                new = [[round(s, 3), value] for n, s, value in curve[_first_after(curve, number) :]]
                if new:
                    curves[who][measure] = new
            log = [entry for entry in self._log if entry["n"] > number]
            return News(self._number, dict(curves), log, is_anew=number < self._anew)


def _first_after(curve: list[tuple[int, float, float]], number: int) -> int:
    """Where in a curve the points after that number begin; most often near its end."""
    at = len(curve)
    while at and curve[at - 1][0] > number:
        at -= 1
    return at
