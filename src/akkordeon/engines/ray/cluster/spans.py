"""What the actors of all hosts did when, by the clock of this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from akkordeon.engines.ray.cluster.waits import FETCH_S
from akkordeon.engines.timeline import Span

__all__ = ["fetch_spans"]

SPANS_S = 2.0
"""How long hosts may take to answer; a session that ends does not wait for one that is stuck."""


def fetch_spans(ray: Any, hosts: Mapping[str, Any]) -> Iterator[Span]:
    """The spans of hosts that answer in time, with the names of their hosts.

    Times are those of ``time.monotonic()`` here, as far as the clocks of two machines agree.

    Args:
        ray: the module.
        hosts: handles by name.
    """
    here_s = time.time() - time.monotonic()
    asked = {handle.spans.remote(): host for host, handle in hosts.items()}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SPANS_S) if asked else ((), ())
    for ref in ready:
        with suppress(ray.exceptions.RayError):  # it died meanwhile
            there_s, spans = ray.get(ref, timeout=FETCH_S)
            yield from (_shifted(span, there_s - here_s, asked[ref]) for span in spans)


def _shifted(span: Span, by_s: float, host: str) -> Span:
    end_s = None if span.end_s is None else span.end_s + by_s
    return replace(span, begin_s=span.begin_s + by_s, end_s=end_s, host=host)
