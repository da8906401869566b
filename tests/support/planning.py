"""Costs of models that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from akkordeon.experiments.planning.costs import BlockCost, ModelCosts, PushCost, Sent

PUSH_BYTES = {"none": 10_000, "bf16": 5_000, "int8": 2_500}


def sent(size_bytes: int) -> Sent:
    """Of numbers that int8 sends in a quarter of the bytes, at no cost."""
    return Sent(bytes=size_bytes, int8_bytes=size_bytes // 4, int8_s=0.0)


def costs_of(seconds: Sequence[float], replicas: bool = False, **settings: Any) -> ModelCosts:
    """Costs of blocks that take so long for a forward, twice for a backward, and a tenth for a push."""
    blocks = [
        BlockCost(
            forward_s=s,
            backward_s=2 * s,
            update_s=0.0,
            output=sent(1000),
            gradient=sent(1000 if i else 0),
            saved_bytes=4000,
            weight_bytes=10_000,
            state_bytes=20_000,
            pushes={
                name: PushCost(push_s=0.1 * s, apply_s=0.1 * s, fetch_s=0.1 * s, push_bytes=size)
                for name, size in PUSH_BYTES.items()
                if replicas
            },
        )
        for i, s in enumerate(seconds)
    ]
    cuts = tuple(str(number) for number in range(1, len(seconds)))
    usual: dict[str, Any] = {
        "gate_s": (0.0, 0.0),
        "sentinel_s": (0.0, 0.0),
        "inputs": sent(500),
        "samples": 10,
    }
    return ModelCosts(blocks=blocks, cuts=cuts, **{**usual, **settings})
