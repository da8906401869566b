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
    "Sent",
    "load_costs",
    "save_costs",
    "write_json",
]

Compression: TypeAlias = Literal["bf16", "int8"] | None

COMPRESSIONS: tuple[Compression, ...] = (None, "bf16", "int8")
"""Of pushes; those of downpour/compression.py."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a message is on a link.

    Args:
        bytes: as it is.
        int8_bytes: with ``wire_dtype=torch.int8``.
        int8_s: to narrow it to that, and to widen it again.
    """

    bytes: int
    int8_bytes: int
    int8_s: float

    def size(self, int8: bool) -> int:
        """Its bytes."""
        return self.int8_bytes if int8 else self.bytes


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
        output: what it sends on.
        gradient: what it sends back; nothing for the first.
        saved_bytes: kept from a forward to its backward.
        weight_bytes: of its weights.
        state_bytes: what its optimizer keeps.
        pushes: what it costs as a replica's, by compression or ``"none"``; empty where it cannot be one.
    """

    forward_s: float
    backward_s: float
    update_s: float
    output: Sent
    gradient: Sent
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
        inputs: of a batch, as they are sent.
        samples: in a batch.
        workers: that were at work at once when
        crowding: was measured: how many times longer work takes then, as memory, caches and the interpreter
            of Python are shared.
        threaded_s: of a batch in one gate on one worker with as many intra-op threads as ``workers``; None
            where there is one, or where gates cannot have several blocks.
        cuts: the names that the blocks but the first begin with.
    """

    blocks: Sequence[BlockCost]
    gate_s: tuple[float, float]
    sentinel_s: tuple[float, float]
    inputs: Sent
    samples: int
    workers: int = 1
    crowding: float = 1.0
    threaded_s: float | None = None
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
    lists = {name: tuple(table[name]) for name in ("gate_s", "sentinel_s", "cuts")}
    blocks = tuple(map(_block, table["blocks"]))
    return ModelCosts(**{**table, **lists, "blocks": blocks, "inputs": Sent(**table["inputs"])})


def _block(table: Mapping[str, Any]) -> BlockCost:
    sent = {name: Sent(**table[name]) for name in ("output", "gradient")}
    pushes = {name: PushCost(**each) for name, each in table["pushes"].items()}
    return BlockCost(**{**table, **sent, "pushes": pushes})
