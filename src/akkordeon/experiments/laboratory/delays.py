"""How late the gradients of each gate are: by how many updates, batch by batch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, Protocol

from akkordeon.core.checks import require_whole

__all__ = ["Delays", "Drawn", "Fixed", "Kind", "PerStage", "WarmedUp", "delays_of"]

LONGEST = 4
"""A delay that is drawn is at most so many times the mean."""


class Delays(Protocol):
    """After how many later forwards a gate gets the gradient of a batch."""

    def of(self, batch: int, gates: int) -> tuple[int, ...]:
        """The delay of a batch, counted from 0, at each gate, head first; never more further down the row."""


@dataclass(frozen=True)
class Fixed:
    """The same at all gates: τ is that, once so many batches have gone before."""

    delay: int

    def of(self, batch: int, gates: int) -> tuple[int, ...]:
        """See :class:`Delays`."""
        return (self.delay,) * gates


@dataclass(frozen=True)
class PerStage:
    """As one forward, one backward has it: ``delay`` at the head, evenly less down the row, none at the tail.

    With as many gates as ``delay`` + 1 gate k of P waits for P - 1 - k updates.
    """

    delay: int

    def of(self, batch: int, gates: int) -> tuple[int, ...]:
        """See :class:`Delays`."""
        last = max(gates - 1, 1)
        return tuple((2 * self.delay * (gates - 1 - k) + last) // (2 * last) for k in range(gates))


@dataclass(frozen=True)
class Drawn:
    """Drawn for each batch, the same at all gates: geometric of mean ``delay``, at most 4 times that.

    Later batches overtake: their gradients are applied first.
    """

    delay: int
    seed: int = 0

    def of(self, batch: int, gates: int) -> tuple[int, ...]:
        """See :class:`Delays`."""
        draw, found = random.Random(f"{self.seed} {batch}"), 0
        while found < LONGEST * self.delay and draw.random() < self.delay / (1 + self.delay):
            found += 1
        return (found,) * gates


@dataclass(frozen=True)
class WarmedUp:
    """Others, come to from none over the first ``batches``, as with ``Async(warm_up=…)``."""

    delays: Delays
    batches: int

    def of(self, batch: int, gates: int) -> tuple[int, ...]:
        """See :class:`Delays`."""
        share = min(batch, self.batches)
        return tuple(delay * share // self.batches for delay in self.delays.of(batch, gates))


Kind = Literal["fixed", "per-stage", "drawn"]
"""The kinds of delays, by name."""


def delays_of(kind: Kind, delay: int, seed: int = 0, warm_up: int = 0) -> Delays:
    """Delays by the name of their kind.

    Args:
        kind: which.
        delay: in updates; see the classes.
        seed: of what is drawn.
        warm_up: batches over which they grow.

    Raises:
        RecipeError: the delay or the warm-up is no whole number of at least 0.
    """
    require_whole("a delay", delay, 0)
    require_whole("the batches of a warm-up", warm_up, 0)
    kinds: dict[Kind, Delays] = {
        "fixed": Fixed(delay),
        "per-stage": PerStage(delay),
        "drawn": Drawn(delay, seed),
    }
    return WarmedUp(kinds[kind], warm_up) if warm_up else kinds[kind]
