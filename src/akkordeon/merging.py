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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Merging"]

Buffers = Sequence[Tensor]


@dataclass
class _Known:
    """Where a shard stands with the buffers of one replica's gate."""

    batches: int
    """Of all replicas, when it was last heard of."""
    counts: list[Tensor | None]
    """What it had counted by then."""


class Merging:
    """Merges buffers as they come; pure but for what it remembers of each replica.

    Args:
        start: the buffers at the beginning.
    """

    def __init__(self, start: Buffers) -> None:
        self._batches = 0
        self._start = _Known(0, _counts(start))
        self._accounts: dict[str, _Known] = {}

    def knows(self, who: str) -> bool:
        """Whether a replica was lent buffers."""
        return who in self._accounts

    def lends(self, who: str, buffers: Buffers) -> None:
        """A replica goes on from these."""
        self._accounts[who] = _Known(self._batches, _counts(buffers))

    def merged(self, who: str, mine: Buffers, theirs: Buffers, steps: int) -> tuple[Tensor, ...]:
        """What comes of the shard's buffers and those of a replica that made so many steps."""
        account = self._accounts.get(who, self._start)
        others = self._batches - account.batches
        self._batches += steps
        self._accounts[who] = _Known(self._batches, _counts(theirs))
        if not others:
            return tuple(theirs)
        share = steps / (steps + others)
        if len(account.counts) != len(theirs) or len(mine) != len(theirs):
            return tuple(theirs)
        with torch.no_grad():
            return tuple(
                _merged(*buffers, share) for buffers in zip(mine, theirs, account.counts, strict=True)
            )

    def leaves(self, who: str) -> None:
        """A replica is gone; what it brought stays."""
        self._accounts.pop(who, None)


def _counts(buffers: Buffers) -> list[Tensor | None]:
    return [buffer if _is_count(buffer) else None for buffer in buffers]


def _is_count(buffer: object) -> bool:
    """Whether this may be a number of batches, as in BatchNorm."""
    return isinstance(buffer, Tensor) and buffer.dim() == 0 and buffer.dtype in (torch.int64, torch.int32)


def _merged(mine: Tensor, theirs: Tensor, counted: Tensor | None, share: float) -> Tensor:
    if not (isinstance(mine, Tensor) and isinstance(theirs, Tensor)):
        return theirs
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return theirs
    if counted is not None:
        return mine + (theirs - counted) if bool(theirs >= counted) else theirs
    if _can_be_averaged(theirs):
        return _average(mine, theirs, share)
    return theirs


def _can_be_averaged(buffer: Tensor) -> bool:
    return buffer.layout is torch.strided and buffer.dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    )  # fmt: skip


def _average(mine: Tensor, theirs: Tensor, share: float) -> Tensor:
    """Elements that are equal stay, as −∞ in a mask does; of two that differ a finite one wins."""
    moved = mine + (theirs - mine) * share
    finite = torch.where(theirs.isfinite() | ~mine.isfinite(), theirs, mine)
    return torch.where(mine == theirs, mine, torch.where(moved.isfinite(), moved, finite))
