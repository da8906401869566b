"""Fetches what the actors of all hosts did when, and what brings it to the clock of this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from akkordeon.engines.ray.cluster.waits import FETCH_S
from akkordeon.engines.timeline import Timeline

__all__ = ["fetch_spans"]

SPANS_S = 5.0
"""How long hosts may take to answer; a session that ends does not wait for one that is stuck."""


def fetch_spans(ray: Any, hosts: Mapping[str, Any], timeline: Timeline) -> None:
    """Have a timeline keep what hosts tell that answer in time.

    Times are those of ``time.monotonic()`` here, as far as the clocks of two machines agree.

    Args:
        ray: the module.
        hosts: handles by name.
        timeline: takes it.
    """
    here_s = time.time() - time.monotonic()
    asked = {handle.spans.remote(): host for host, handle in hosts.items()}
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SPANS_S) if asked else ((), ())
    for ref in ready:
        with suppress(ray.exceptions.RayError):  # it died meanwhile
            there_s, raw = ray.get(ref, timeout=FETCH_S)
            timeline.extend(asked[ref], raw, there_s - here_s)
