"""The actors of ours in a cluster, by their names."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from akkordeon.engines.ray.cluster.connection import NAMESPACE, require_ray
from akkordeon.engines.ray.cluster.waits import ANSWER_S, ask, end_actor

__all__ = ["SPARE", "end_named", "hosts_of", "is_made_anew", "named", "named_actors"]

SPARE = "spare"
"""Begins the name of a process that is no host yet."""


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


def hosts_of(network: str) -> dict[str, Any]:
    """The processes that a detached network has for its gates: handles, by the name of the actor.

    Raises:
        ClusterError: the head of the cluster does not answer.
    """
    found = {}
    for name in named_actors():
        if name.startswith(f"host/{network}/"):
            with suppress(ValueError):  # it has just ended
                found[name] = named(name)
    return found


def end_named(actors: Mapping[str, Any]) -> None:
    """End actors, and wait until their names are free.

    Args:
        actors: handles by name.
    """
    for handle in actors.values():
        end_actor(require_ray(), handle)
    deadline_s = time.monotonic() + ANSWER_S
    while actors.keys() & set(named_actors()) and time.monotonic() < deadline_s:
        time.sleep(0.1)


def is_made_anew() -> bool:
    """Whether this is the process of an actor that Ray made anew, as its process had died."""
    ray = require_ray()
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)
