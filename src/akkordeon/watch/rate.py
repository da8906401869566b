"""How fast a number grows, over the last few seconds."""

from __future__ import annotations

from collections import deque

__all__ = ["Rate"]

RATE_OVER_S = 5.0
"""Rates and shares are means over so much time."""


class Rate:
    """Of a number that grows, looked at now and then."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, number: float) -> None:
        """Take in what it is now."""
        self._points.append((now_s, number))
        while self._points[-1][0] - self._points[0][0] > RATE_OVER_S:
            self._points.popleft()

    @property
    def per_s(self) -> float:
        """Growth per second; 0 before there are two points."""
        if not self._points:
            return 0.0
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0
