"""What goes wrong, and when: crashes, partitions, freezes.

Crash      ──── up ────✕ (all it held is gone)  ········ back ──── up, as new
Partition  ──── sends ─┤ messages wait │ healed ── they arrive      (longer than patience: a crash)
             what arrived just before │ arrives again, and is dropped
Freeze     ──── works ─┤ does nothing  ├──────── goes on where it was
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from akkordeon.core.errors import RecipeError

__all__ = ["Crash", "Freeze", "Partition", "SimulatedFault"]


@dataclass(frozen=True, kw_only=True)
class _Scheduled:
    """Something that happens at a time, or again and again.

    Args:
        at_s: when; None with a rate.
        every_s: mean time to the next, exponential; None happens once.
    """

    at_s: float | None = None
    every_s: float | None = None

    def __post_init__(self) -> None:
        """Either a time or a rate."""
        if (self.at_s is None) == (self.every_s is None):
            raise RecipeError(f"a fault happens at_s a time or every_s so often; got {self}")
        if (self.at_s or 0) < 0 or (self.every_s is not None and self.every_s <= 0):
            raise RecipeError(f"a fault's at_s is at least 0 and its every_s above 0; got {self}")

    def times(self, rng: Random, lasts_s: float) -> Iterator[float]:
        """When it happens; the next only after the last is over."""
        if self.at_s is not None:
            yield self.at_s
            return
        assert self.every_s is not None
        now_s = 0.0
        while True:
            now_s += rng.expovariate(1 / self.every_s)
            yield now_s
            now_s += lasts_s


@dataclass(frozen=True, kw_only=True)
class Crash(_Scheduled):
    """Actors die with all they hold.

    Args:
        who: address of an actor or name of a host, with ``*`` as in file names.
        back_after_s: made anew so much later; None stays away. Whoever is brought back by its session, as a
            gate is in a network with ``recovery``, has its place again then, or at once.
    """

    who: str
    back_after_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Partition(_Scheduled):
    """Nothing gets from the one side to the other.

    As TCP would, the link keeps what is sent until the partition has healed. If that takes longer than
    ``patience_s``, the one side gives up the other: to it, its actors are dead, and so they are.

    What had arrived before, and nobody could acknowledge any more, arrives again when it has healed, ahead of
    what waits: of each link all that had come in a random part of the last ``again_s``.

    Args:
        one: names of hosts or zones, with ``*`` as in file names.
        other: the side that is given up.
        heal_after_s: how long it lasts.
        patience_s: how long the sides wait for each other.
        again_s: how long before it messages may have arrived that arrive again.

    Raises:
        RecipeError: ``again_s`` is below 0.
    """

    one: str
    other: str
    heal_after_s: float
    patience_s: float = 30.0
    again_s: float = 0.0

    def __post_init__(self) -> None:
        """Nothing can come again that has not come yet."""
        super().__post_init__()
        if self.again_s < 0:
            raise RecipeError(f"a partition's again_s is at least 0, got {self.again_s}")


@dataclass(frozen=True, kw_only=True)
class Freeze(_Scheduled):
    """Actors do nothing for a while (a stopped process, a sleeping laptop), and then go on.

    Args:
        who: address of an actor or name of a host, with ``*`` as in file names.
        for_s: how long.
    """

    who: str
    for_s: float


SimulatedFault = Crash | Partition | Freeze
