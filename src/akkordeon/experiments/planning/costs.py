"""What the blocks of a model cost, on one machine: measured there, and kept in a file for others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from akkordeon.core.errors import DataError

__all__ = [
    "COMPRESSIONS",
    "BlockCost",
    "Compression",
    "ModelCosts",
    "PushCost",
    "load_costs",
    "save_costs",
    "write_json",
]

Compression: TypeAlias = Literal["bf16", "int8"] | None

COMPRESSIONS: tuple[Compression, ...] = (None, "bf16", "int8")
"""Of pushes; those of downpour/compression.py."""


@dataclass(frozen=True, kw_only=True)
class PushCost:
    """What a block costs besides where it is a replica's, by the compression of pushes.

    Args:
        push_s: to gather and pack a push.
        apply_s: to apply it, and to lend what comes of it; the shard's.
        fetch_s: to go on with weights that came.
        push_bytes: of a push.
    """

    push_s: float
    apply_s: float
    fetch_s: float
    push_bytes: int


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """What a block costs with every batch, in seconds and bytes.

    Args:
        forward_s: of a forward.
        backward_s: of a backward, until the gradient of its input is there.
        update_s: of an update.
        output_bytes: what it sends on.
        gradient_bytes: what it sends back; 0 for the first.
        saved_bytes: kept from a forward to its backward.
        weight_bytes: of its weights.
        state_bytes: what its optimizer keeps.
        pushes: what it costs as a replica's, by compression or ``"none"``; empty where it cannot be one.
    """

    forward_s: float
    backward_s: float
    update_s: float
    output_bytes: int
    gradient_bytes: int
    saved_bytes: int
    weight_bytes: int
    state_bytes: int
    pushes: Mapping[str, PushCost] = field(default_factory=dict)

    def push(self, compression: Compression) -> PushCost:
        """What it costs as a replica's."""
        return self.pushes[compression or "none"]


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """What a model costs on one machine.

    Args:
        blocks: of each block.
        gate_s: what a gate takes for a (forward, backward), whatever its module does, its engine included.
        sentinel_s: what a trainer and its reader take for a batch: (its loss, all else), likewise.
        input_bytes: of a batch of inputs.
        samples: in a batch.
        workers: that were at work at once when
        crowding: was measured: how many times longer work takes then, as memory, caches and the interpreter
            of Python are shared.
        cuts: the names that the blocks but the first begin with.
    """

    blocks: Sequence[BlockCost]
    gate_s: tuple[float, float]
    sentinel_s: tuple[float, float]
    input_bytes: int
    samples: int
    workers: int = 1
    crowding: float = 1.0
    cuts: Sequence[str] = ()

    @property
    def block_s(self) -> list[float]:
        """Seconds of each block for a batch, there and back."""
        return [block.forward_s + block.backward_s + block.update_s for block in self.blocks]

    @property
    def batch_s(self) -> float:
        """Seconds of a batch on one worker, in one gate."""
        return sum(self.block_s) + sum(self.gate_s) + sum(self.sentinel_s)

    @property
    def compressions(self) -> list[Compression]:
        """That pushes were measured with; none where there can be no replicas."""
        return [each for each in COMPRESSIONS if (each or "none") in self.blocks[0].pushes]


def save_costs(costs: ModelCosts, path: str | Path) -> None:
    """Write costs as JSON, for :func:`load_costs` on another machine; see :func:`write_json`."""
    write_json(asdict(costs), path)


def write_json(table: Mapping[str, Any], path: str | Path) -> None:
    """Write plain data as JSON.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def load_costs(path: str | Path) -> ModelCosts:
    """Read what :func:`save_costs` wrote.

    Raises:
        DataError: there is no such file, or there are no costs in it.
    """
    try:
        return _costs(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} has no costs that `akkordeon plan --save-costs` wrote: {error}") from error


def _costs(table: Mapping[str, Any]) -> ModelCosts:
    blocks = tuple(
        BlockCost(**{**block, "pushes": {name: PushCost(**each) for name, each in block["pushes"].items()}})
        for block in table["blocks"]
    )
    gate_s, sentinel_s, cuts = (tuple(table[name]) for name in ("gate_s", "sentinel_s", "cuts"))
    lists = {"blocks": blocks, "gate_s": gate_s, "sentinel_s": sentinel_s, "cuts": cuts}
    return ModelCosts(**{**table, **lists})
