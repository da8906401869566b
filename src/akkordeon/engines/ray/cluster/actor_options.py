"""How Ray is to make an actor: where, with what resources, and under which name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from akkordeon.engines.ray.cluster.connection import NAMESPACE, require_ray

__all__ = ["UNRECORDED", "detached_as", "on_this_node", "with_resources"]

UNRECORDED = {"enable_task_events": False}
"""Ray's head need not keep an event for each message."""


def on_this_node() -> dict[str, Any]:
    """Ray's options of an actor that stays on this node, and has a thread besides for those who watch it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(require_ray().get_runtime_context().get_node_id(), soft=False)
    return {"scheduling_strategy": here, "concurrency_groups": {"control": 1}}


def detached_as(name: str) -> dict[str, Any]:
    """Ray's options of an actor that outlives this process, and is found by its name."""
    return {"name": name, "namespace": NAMESPACE, "lifetime": "detached"}


def with_resources(needs: Mapping[str, float]) -> dict[str, Any]:
    """Resources as Ray's options have them: CPUs, GPUs and memory by name, all others in a dict."""
    own = {"num_cpus", "num_gpus", "memory"}
    options: dict[str, Any] = {name: amount for name, amount in needs.items() if name in own}
    custom = {name: amount for name, amount in needs.items() if name not in own}
    return options | ({"resources": custom} if custom else {})
