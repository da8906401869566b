"""Spans as they happen, of which so many are kept."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path

from akkordeon.core.checks import require_whole
from akkordeon.core.messages import Message, batch_of
from akkordeon.engines.timeline.chrome_trace import write_trace
from akkordeon.engines.timeline.drawing import svg
from akkordeon.engines.timeline.span import WORK, Span

__all__ = ["Raw", "Timeline"]

Raw = tuple[str, str, int | None, float, float | None, str]
"""A span as it is kept: who, name of the message or of the fault, batch, from, until, sender of the batch."""


class Timeline:
    """What everybody did when, as an engine adds it; see ``timeline`` of each.

    Args:
        spans_max: keep so many and no more.
        latest: of more, keep the latest; else the first.

    Raises:
        RecipeError: it is to keep fewer than one.
    """

    def __init__(self, spans_max: int = 200_000, *, latest: bool = False) -> None:
        require_whole("spans_max", spans_max)
        self.spans_max = spans_max
        self._latest = latest
        self._raw: deque[Raw] = deque(maxlen=spans_max if latest else None)
        self._elsewhere: dict[str, tuple[list[Raw], float]] = {}  # by process, and what its clock lacks

    @property
    def spans(self) -> list[Span]:
        """All that is kept, in the order in which it ended; of other processes, after all of this one."""
        here = [_span(*raw) for raw in self._raw.copy()]
        return here + [
            _moved(_span(*each), host, later_s)
            for host, (raw, later_s) in self._elsewhere.copy().items()
            for each in raw
        ]

    @property
    def raw(self) -> list[Raw]:
        """What is kept of this process, as it is kept: it is sent in a tenth of the time that spans take."""
        return list(self._raw.copy())

    def add(self, who: str, message: Message, begin_s: float, end_s: float) -> None:
        """Keep what an actor worked on; what took no time is left out. From any thread.

        It is called for each of many messages, and keeps nothing of what is in them.
        """
        if end_s > begin_s and (self._latest or len(self._raw) < self.spans_max):
            batch = batch_of(message)
            number, sender = (None, "") if batch is None else (batch.number, batch.sentinel)
            self._raw.append((who, type(message).__name__, number, begin_s, end_s, sender))

    def fault(self, who: str, what: str, begin_s: float, end_s: float | None) -> None:
        """Keep what went wrong with an actor."""
        self._raw.append((who, what, None, begin_s, end_s, ""))

    def extend(self, host: str, raw: list[Raw], later_s: float) -> None:
        """Keep what was done in another process, instead of what was kept of it before.

        Args:
            host: its name.
            raw: see :attr:`raw`.
            later_s: to be added to its times.
        """
        self._elsewhere[host] = raw, later_s

    def svg(self, title: str = "", begin_s: float = 0.0, end_s: float | None = None) -> str:
        """A picture of it; see :func:`akkordeon.engines.timeline.drawing.svg`."""
        return svg(self.spans, title, begin_s, end_s)

    def write_trace(self, path: str | Path) -> None:
        """Write it as a file that https://ui.perfetto.dev opens; see :func:`write_trace`.

        Raises:
            DataError: it cannot be written.
        """
        write_trace(self.spans, path)

    def notable_stretch(self, boxes: int = 30) -> tuple[float, float]:
        """A stretch worth drawing: around the first fault, or from the start, some boxes for every lane."""
        spans = self.spans
        last_s = max((s.end_s for s in spans if s.end_s is not None), default=1.0)
        faults = [s for s in spans if s.what not in WORK]
        if faults:
            begin_s, end_s = faults[0].begin_s, faults[0].end_s or faults[0].begin_s
            around_s = max(end_s - begin_s, last_s / 1000)
            return max(0.0, begin_s - around_s), min(last_s, end_s + 2 * around_s)
        lanes = len({s.who for s in spans}) or 1
        some = spans[: boxes * lanes]
        return 0.0, max((s.end_s for s in some if s.end_s is not None), default=1.0)


def _moved(span: Span, host: str, later_s: float) -> Span:
    end_s = None if span.end_s is None else span.end_s + later_s
    return replace(span, begin_s=span.begin_s + later_s, end_s=end_s, host=host)


def _span(who: str, name: str, batch: int | None, begin_s: float, end_s: float | None, sender: str) -> Span:
    if name[:1].islower():  # a fault
        return Span(who, name, batch, begin_s, end_s)
    what = name.lower()
    if not isinstance(batch, int) or not isinstance(sender, str):  # of a message that is not what it says
        batch, sender = None, ""
    return Span(who, what if what in WORK else "other", batch, begin_s, end_s, name, sender)
