"""How the buffers of many replicas become those of their shard.

With its weights a shard lends its buffers once, with the first ones; from then on a replica's own run on, and
come with its pushes. A push of s batches, before which other replicas brought b since this one was last heard
of, has the share p = s/(s + b):

    running statistics (floating)   shard ← shard + p · (replica − shard)
    counts (a whole number)         shard ← shard + what the replica added
    all else                        shard ← replica

So the replicas count by their batches, a shard counts the batches of all, and with one replica, whose share
is 1, the shard has its buffers bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["BufferMerger", "are_alike", "on_device"]

Buffers = Mapping[str, Any]
"""Buffers by name: tensors, None where a buffer is still to come, and what modules keep as extra state."""


@dataclass
class _Known:
    """Where a shard stands with the buffers of one replica's gate."""

    batches: int
    """Of all replicas, when it was last heard of."""
    counts: dict[str, Tensor]
    """What it had counted by then."""


class BufferMerger:
    """Merges buffers as they come; it changes nothing but what it remembers of each replica.

    Args:
        start: the buffers at the beginning.
    """

    def __init__(self, start: Buffers) -> None:
        self._batches = 0
        self._start = _Known(0, _counts(start))
        self._known: dict[str, _Known] = {}

    def knows(self, who: str) -> bool:
        """Whether a replica was lent buffers."""
        return who in self._known

    def lend(self, who: str, buffers: Buffers) -> None:
        """A replica goes on from these."""
        self._known[who] = _Known(self._batches, _counts(buffers))

    def merge(self, who: str, mine: Buffers, theirs: Buffers, steps: int) -> dict[str, Any]:
        """What comes of the shard's buffers and those of a replica that made so many steps."""
        known = self._known.get(who, self._start)
        others = self._batches - known.batches
        self._batches += steps
        self._known[who] = _Known(self._batches, _counts(theirs))
        if not others:
            return dict(theirs)
        share = steps / (steps + others)
        with torch.no_grad():
            return {
                name: _merged(mine.get(name), buffer, known.counts.get(name), share)
                for name, buffer in theirs.items()
            }

    def __len__(self) -> int:
        """How many replicas were lent buffers."""
        return len(self._known)

    def remove(self, who: str) -> None:
        """A replica is gone; what it brought stays."""
        self._known.pop(who, None)


def are_alike(theirs: Buffers, mine: Buffers) -> bool:
    """Whether buffers that came are of the same module: it has each, as they are; extra state may be any."""
    return all(_is_alike(buffer, mine.get(name)) for name, buffer in theirs.items())


def _is_alike(one: Any, other: Any) -> bool:
    if isinstance(other, Tensor):
        is_dense = isinstance(one, Tensor) and one.layout == other.layout and not one.is_meta
        return is_dense and one.shape == other.shape and one.dtype == other.dtype
    return other is not None and not isinstance(one, Tensor)


def on_device(buffers: Buffers, device: torch.device) -> dict[str, Any]:
    """The same buffers on a device."""
    return {name: b.to(device) if isinstance(b, Tensor) else b for name, b in buffers.items()}


def _counts(buffers: Buffers) -> dict[str, Tensor]:
    """What may be a number of batches, as in BatchNorm."""
    return {
        name: buffer
        for name, buffer in buffers.items()
        if isinstance(buffer, Tensor) and buffer.dim() == 0 and buffer.dtype in (torch.int64, torch.int32)
    }


def _merged(mine: Any, theirs: Any, counted: Tensor | None, share: float) -> Any:
    if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
        return theirs
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return theirs
    if counted is not None and bool(theirs >= counted):
        return mine + (theirs - counted)
    return _average(mine, theirs, share) if _can_be_averaged(theirs) else theirs


def _can_be_averaged(buffer: Tensor) -> bool:
    return buffer.layout is torch.strided and buffer.dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    )  # fmt: skip


def _average(mine: Tensor, theirs: Tensor, share: float) -> Tensor:
    """Elements that are equal stay, as −∞ in a mask does; of two that differ a finite one wins."""
    moved = mine + (theirs - mine) * share
    finite = torch.where(theirs.isfinite() | ~mine.isfinite(), theirs, mine)
    return torch.where(mine == theirs, mine, torch.where(moved.isfinite(), moved, finite))
