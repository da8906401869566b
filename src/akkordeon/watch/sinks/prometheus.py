"""A sink that Prometheus can ask: the latest numbers at ``/metrics``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from akkordeon.core.checks import require_whole
from akkordeon.core.errors import SessionError
from akkordeon.watch.sinks.points import Point
from akkordeon.watch.sinks.sink import Sink, require_extra

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Prometheus"]

COUNTERS = frozenset(
    {
        "alarms", "batches_lost", "batches_refused", "batches_sent", "batches_trained", "bytes_in",
        "bytes_out", "examples", "fetches", "messages_refused", "pushes", "restarts",
    }
)  # fmt: skip
"""Numbers that only grow."""

OF_WHAT = {
    "batches": "of a sentinel so far",
    "epoch": "of a sentinel's latest epoch",
    "gate": "of a gate or shard",
    "round": "of a sentinel's latest round",
    "stream": "of a stream so far",
    "window": "of a sentinel since it last told",
}

BOUNDS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds of the buckets in which τ is counted."""


class Prometheus(Sink):
    """Answers ``GET /metrics`` with the latest numbers, from a thread of its own, until it is closed.

    Metrics are ``akkordeon_epoch_loss{sentinel="train"}``, ``akkordeon_round_score{sentinel="validate",
    score="accuracy"}``, ``akkordeon_gate_staleness_bucket{gate="gate/0",le="4"}`` and so on. They are
    computed when somebody asks.

    Args:
        port: to listen at; 0 takes one that is free.
        host: an address of this machine. What is there is open to all who reach it.

    Attributes:
        port: where it listens.
        url: likewise.

    Raises:
        RecipeError: prometheus_client is not installed.
        SessionError: the port is taken, or the address not of this machine.
    """

    def __init__(self, port: int = 9464, *, host: str = "127.0.0.1") -> None:
        super().__init__()
        require_whole("port", port, 0)
        require_extra("prometheus_client", "a sink for Prometheus", "prometheus")
        from prometheus_client import CollectorRegistry, start_http_server

        self._latest: dict[tuple[str, str], Point] = {}
        self._reading = threading.Lock()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise SessionError(f"the metrics cannot be offered at {host}:{port}: {why}") from error
        self.port: int = self._server.server_port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def write(self, point: Point) -> None:
        """Keep the numbers until there are newer ones."""
        with self._reading:
            before = self._latest.get((point.kind, point.of))
            if before is not None:
                numbers = {**before.numbers, **point.numbers}
                rest = point.scores or before.scores, point.staleness or before.staleness
                point = Point(point.kind, point.of, point.step, numbers, *rest)
            self._latest[point.kind, point.of] = point

    def end(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def describe(self) -> Iterable[Metric]:
        """Nothing: which metrics there will be is not known before."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The latest numbers, each metric once; prometheus_client asks, from a thread for each request."""
        from prometheus_client.core import GaugeMetricFamily

        with self._reading:
            points, step = sorted(self._latest.values(), key=lambda point: point.kind), self._points.step
        yield GaugeMetricFamily("akkordeon_step", "Batches trained by all sentinels together.", value=step)
        for kind, same in groupby(points, key=lambda point: point.kind):
            yield from _families(kind, list(same))


def _families(kind: str, points: list[Point]) -> Iterator[Metric]:
    """The metrics of points of one kind."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    label, of_what = "gate" if kind == "gate" else "sentinel", OF_WHAT[kind]
    for name in dict.fromkeys(name for point in points for name in point.numbers):
        family: Any = CounterMetricFamily if name in COUNTERS else GaugeMetricFamily
        told = f"{name.replace('_', ' ').capitalize()} {of_what}."
        metric = family(f"akkordeon_{kind}_{name.removeprefix(f'{kind}_')}", told, labels=[label])
        for point in points:
            if name in point.numbers:
                metric.add_metric([point.of], point.numbers[name])
        yield metric
    if any(point.scores for point in points):
        metric = GaugeMetricFamily(f"akkordeon_{kind}_score", f"Scores {of_what}.", labels=[label, "score"])
        for point in points:
            for name, value in point.scores.items():
                metric.add_metric([point.of, name], value)
        yield metric
    if any(point.staleness for point in points):
        seen = HistogramMetricFamily(f"akkordeon_{kind}_staleness", "τ of all updates.", labels=[label])
        for point in points:
            total = sum(tau * n for tau, n in point.staleness.items())
            seen.add_metric([point.of], list(_buckets(point.staleness)), total)
        yield seen


def _buckets(staleness: Mapping[int, int]) -> Iterator[tuple[str, float]]:
    """(upper bound, how many are not above it), the last of them infinite."""
    for bound in BOUNDS:
        yield str(bound), sum(n for tau, n in staleness.items() if tau <= bound)
    yield "+Inf", sum(staleness.values())
