"""Smaller fetches: how far a shard's weights have come from those that a replica has, compressed.

    shard                                            replica
    d ← weights − has           ──Parameters q(d)──▶
    has ← has + q(d)                                 has ← has + q(d)

Both know the same ``has``, bit for bit, so what packing lost is in the next difference: this error feedback
needs no memory but that of ``has``, a copy of the weights for each replica. The first weights go whole, and
so do those whose difference is not finite.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from akkordeon.core.payload import all_finite
from akkordeon.downpour.compression import Packed, packed, unpacked

__all__ = ["Lending", "Received"]

Lent = tuple[tuple[Tensor, ...], tuple[float, ...] | None]
"""As :data:`Packed`, where no tensor is missing."""


@dataclass(frozen=True, slots=True)
class Received:
    """The weights that a replica has of a shard, and the version that they stand for."""

    version: int
    weights: tuple[Tensor, ...]

    def plus(self, difference: Packed, version: int) -> Received:
        """What comes of them with a difference, in memory of its own."""
        moved = unpacked(difference, self.weights)
        weights = (w if d is None else w + d for w, d in zip(self.weights, moved, strict=True))
        return Received(version, tuple(weights))


class Lending:
    """Packs a shard's weights for its replicas, and knows what each of them has.

    Args:
        kind: of compression; None sends weights whole, and remembers nothing.
    """

    def __init__(self, kind: str | None) -> None:
        self._kind = kind
        self._has: dict[str, Received] = {}  # by replica's gate

    def pack(self, who: str, version: int, weights: tuple[Tensor, ...]) -> tuple[Lent, int | None]:
        """What to send, and the version that it is the difference from, None if it is whole."""
        if self._kind is None:
            return (weights, None), None
        has = self._has.get(who)
        if has is not None:
            difference = [new - old for new, old in zip(weights, has.weights, strict=True)]
            if all_finite(difference):
                sent, scales = packed(difference, self._kind)
                self._has[who] = has.plus((sent, scales), version)
                return (tuple(t for t in sent if t is not None), scales), has.version
        self._has[who] = Received(version, weights)
        return (weights, None), None

    def lent(self, who: str, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What somebody has who was just lent these weights."""
        return weights if self._kind is None else self._has[who].weights

    def remove(self, who: str) -> None:
        """Somebody is gone, or begins anew."""
        self._has.pop(who, None)
