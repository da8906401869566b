"""How commands reach the networks of a Ray cluster; Ray is imported only when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from akkordeon.engines.ray.cluster.connection import join, probe, require_ray

__all__ = ["cluster_at", "detached_networks"]


def detached_networks() -> Any:
    """The module that knows networks which run on their own.

    Raises:
        ClusterError: Ray is not installed.
    """
    require_ray()
    from akkordeon.engines.ray import detached

    return detached


@contextmanager
def cluster_at(address: str) -> Iterator[Any]:
    """Be connected to a cluster; gives that module.

    Raises:
        ClusterError: no cluster answers there, or it refuses us.
    """
    probe(address)
    networks = detached_networks()
    leave = join(address)
    try:
        yield networks
    finally:
        leave()
