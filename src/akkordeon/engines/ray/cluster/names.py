"""The actors of ours in a cluster, by their names."""

from __future__ import annotations

from typing import Any

from akkordeon.engines.ray.cluster.connection import NAMESPACE, require_ray
from akkordeon.engines.ray.cluster.waits import ask

__all__ = ["is_made_anew", "named", "named_actors"]


def named_actors() -> list[str]:
    """The names of all of ours.

    Raises:
        ClusterError: the head of the cluster does not answer.
    """
    ray = require_ray()
    found = ask(lambda: ray.util.list_named_actors(all_namespaces=True), "its networks")
    return [actor["name"] for actor in found if actor["namespace"] == NAMESPACE]


def named(name: str) -> Any:
    """The handle of an actor.

    Raises:
        ValueError: there is none of that name.
        ClusterError: the head of the cluster does not answer.
    """
    ray = require_ray()
    return ask(lambda: ray.get_actor(name, namespace=NAMESPACE), f"{name!r}")


def is_made_anew() -> bool:
    """Whether this is the process of an actor that Ray made anew, as its process had died."""
    ray = require_ray()
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)
