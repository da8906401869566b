"""What a server counts of its requests, and numbers as text in Prometheus' format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

__all__ = ["RequestCounts", "number"]

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the buckets in which latencies are counted."""


class RequestCounts:
    """How many requests there were, how they were answered, and how long that took. For one thread."""

    def __init__(self) -> None:
        self._by_answer: Counter[tuple[str, int]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}

    def add(self, path: str, code: int, seconds: float) -> None:
        """One more was answered."""
        self._by_answer[path, code] += 1
        buckets = self._buckets.setdefault(path, [0] * (len(BOUNDS_S) + 1))
        buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self._seconds[path] = self._seconds.get(path, 0.0) + seconds

    def lines(self) -> Iterator[str]:
        """Them in Prometheus' format."""
        name = "akkordeon_requests_total"
        yield from _head(name, "counter", "Requests by path and status code.")
        for (path, code), count in sorted(self._by_answer.items()):
            yield f'{name}{{path="{path}",code="{code}"}} {count}'
        name = "akkordeon_request_seconds"
        yield from _head(name, "histogram", "From the first byte of a request to its answer.")
        for path, buckets in sorted(self._buckets.items()):
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), accumulate(buckets), strict=True):
                yield f'{name}_bucket{{path="{path}",le="{bound}"}} {count}'
            yield f'{name}_sum{{path="{path}"}} {self._seconds[path]:.6f}'
            yield f'{name}_count{{path="{path}"}} {sum(buckets)}'


def number(name: str, what: str, value: float, *, kind: str = "gauge") -> Iterator[str]:
    """One number in Prometheus' format.

    Args:
        name: of it, without ours before it.
        what: it is, in a sentence.
        value: now.
        kind: ``"counter"`` for what only grows.
    """
    yield from _head(f"akkordeon_{name}", kind, what)
    yield f"akkordeon_{name} {value:.15g}"


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"
