"""Spans as a trace of events, in the JSON format of Chrome's tracing, which Perfetto opens.

A process of the trace is a process of the run, a thread of the trace is an actor: an actor handles one
message at a time, so its spans never overlap. Arrows lead a batch from actor to actor. Times are those of
the run, virtual ones where it was simulated; the first span begins at 0.

The format is "Trace Event Format" of the Chromium project: ``X`` is a span, ``M`` names a lane, ``s`` and
``f`` are the two ends of an arrow; times are microseconds.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from akkordeon.core.errors import DataError
from akkordeon.engines.timeline.span import WORK, Span, lane_order

__all__ = ["trace_events", "write_trace"]

US_PER_S = 1e6

HERE = "actors"
"""What the process is called where there is but one."""


def write_trace(spans: Sequence[Span], path: str | Path) -> None:
    """Write a trace; packed, where the name of the file ends in ``.gz``, which Perfetto opens as well.

    Raises:
        DataError: it cannot be written.
    """
    try:
        with _opened(Path(path)) as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
            for i, event in enumerate(trace_events(spans)):
                file.write((",\n" if i else "") + json.dumps(event, ensure_ascii=False))
            file.write("\n]}\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wt", encoding="utf-8", compresslevel=5)
    return path.open("w", encoding="utf-8")


def trace_events(spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    """The events of a trace: names of its lanes, then spans and faults, then arrows along batches."""
    first_s = min((span.begin_s for span in spans), default=0.0)
    last_s = max((span.end_s for span in spans if span.end_s is not None), default=first_s)
    lanes = _lanes(spans)
    yield from _names(lanes)
    for span in spans:
        yield _event(span, lanes[span.host, span.who], first_s, last_s)
    yield from _arrows(spans, lanes, first_s)


Lane = tuple[int, int]
"""Numbers of a process and of a thread in it."""


def _lanes(spans: Sequence[Span]) -> dict[tuple[str, str], Lane]:
    """A lane for each actor of each process: gates first, in the order of the row."""
    hosts: dict[str, int] = {}
    found: dict[tuple[str, str], Lane] = {}
    for host, who in sorted({(s.host, s.who) for s in spans}, key=lambda it: (it[0], lane_order(it[1]))):
        found[host, who] = hosts.setdefault(host, len(hosts) + 1), len(found) + 1
    return found


def _names(lanes: dict[tuple[str, str], Lane]) -> Iterator[dict[str, Any]]:
    named = set()
    for (host, who), (process, thread) in lanes.items():
        if process not in named:
            named.add(process)
            yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": host or HERE}}
        lane = {"ph": "M", "pid": process, "tid": thread}
        yield {**lane, "name": "thread_name", "args": {"name": who}}
        yield {**lane, "name": "thread_sort_index", "args": {"sort_index": thread}}


def _event(span: Span, lane: Lane, first_s: float, last_s: float) -> dict[str, Any]:
    process, thread = lane
    where = {"pid": process, "tid": thread, "ts": _us(span.begin_s - first_s)}
    if span.what not in WORK:
        until_s = max(last_s, span.begin_s) if span.end_s is None else span.end_s
        return {"ph": "X", "cat": "fault", "name": span.what, "dur": _us(until_s - span.begin_s), **where}
    assert span.end_s is not None, "only faults last for ever"
    event = {"ph": "X", "cat": span.what, "name": span.message or span.what, **where}
    event["dur"] = _us(span.end_s - span.begin_s)
    if span.batch is not None:
        event["args"] = {"batch": span.batch, "sentinel": span.sender}
    return event


def _arrows(
    spans: Sequence[Span], lanes: dict[tuple[str, str], Lane], first_s: float
) -> Iterator[dict[str, Any]]:
    """From each thing that was done about a batch to the next that was done elsewhere."""
    ways: dict[tuple[str, int], list[Span]] = {}
    for span in spans:
        if span.batch is not None:
            ways.setdefault((span.sender, span.batch), []).append(span)
    number = 0
    for way in ways.values():
        way.sort(key=lambda span: span.begin_s)
        for here, there in pairwise(way):
            if here.who == there.who:
                continue
            number += 1
            arrow = {"cat": "batch", "name": "batch", "id": number}
            for end, span in (("s", here), ("f", there)):
                process, thread = lanes[span.host, span.who]
                at = {"pid": process, "tid": thread, "ts": _us(span.begin_s - first_s)}
                yield {"ph": end, **arrow, **at, **({"bp": "e"} if end == "f" else {})}


def _us(seconds: float) -> float:
    return round(seconds * US_PER_S, 3)
