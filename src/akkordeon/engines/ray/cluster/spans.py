"""What the actors of all hosts did when, by the clock of this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from akkordeon.engines.ray.cluster.waits import answered
from akkordeon.engines.timeline import Span

__all__ = ["fetch_spans"]


def fetch_spans(ray: Any, hosts: Mapping[str, Any]) -> Iterator[Span]:
    """The spans of hosts that answer in time, with the names of their hosts.

    Times are those of ``time.monotonic()`` here, as far as the clocks of two machines agree.

    Args:
        ray: the module.
        hosts: handles by name.
    """
    here_s = time.time() - time.monotonic()
    asked = [handle.spans.remote() for handle in hosts.values()]
    for host, (there_s, spans) in zip(hosts, answered(ray, asked, (0.0, ())), strict=True):
        ahead_s = there_s - here_s
        for span in spans:
            end_s = None if span.end_s is None else span.end_s + ahead_s
            yield replace(span, begin_s=span.begin_s + ahead_s, end_s=end_s, host=host)
