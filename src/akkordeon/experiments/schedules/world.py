"""A world to compare schedules in: one row of gates, its costs, its links, what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from akkordeon.core.errors import RecipeError
from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown
from akkordeon.engines.simulator.faults import Crash, SimulatedFault
from akkordeon.engines.simulator.links import HERE, Link

__all__ = ["ScheduleOutcome", "World"]


@dataclass(frozen=True, kw_only=True)
class World:
    """What all schedules are given alike.

    Args:
        costs: of the gates, one for each.
        link: between any two of them.
        bytes_between: of what one gate sends another, either way.
        samples: in a batch (for the synchronous schedules: in a micro-batch).
        seconds: virtual time the comparison runs.
        seed: of everything random.
        slowdowns: stragglers.
        faults: what goes wrong.
        checkpoint_every_s: a gate that comes back has the weights of the last of these.
        weight_bytes: of all gates together, for an all-reduce.

    Raises:
        RecipeError: no gates, or a number out of range.
    """

    costs: Sequence[Cost]
    link: Link = HERE
    bytes_between: int = 0
    samples: int = 1
    seconds: float = 60.0
    seed: int = 0
    slowdowns: Sequence[Slowdown] = ()
    faults: Sequence[SimulatedFault] = ()
    checkpoint_every_s: float = 60.0
    weight_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if not self.costs:
            raise RecipeError("a world needs at least one gate, got none")
        for name in ("samples", "seconds", "checkpoint_every_s"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name} is above 0, got {getattr(self, name)}")

    @property
    def row(self) -> tuple[str, ...]:
        """Addresses of the gates."""
        return tuple(f"gate/{i}" for i in range(len(self.costs)))

    @property
    def compute(self) -> Compute:
        """The costs of the gates by address; sentinels cost nothing."""
        return Compute(dict(zip(self.row, self.costs, strict=True)), self.slowdowns)

    @property
    def crashes(self) -> list[Crash]:
        """The faults that synchronous schedules are made to know."""
        return [fault for fault in self.faults if isinstance(fault, Crash)]


@dataclass
class ScheduleOutcome:
    """What a schedule made of a world.

    Attributes:
        schedule: its name.
        seconds: virtual, that it ran.
        samples: trained and kept, of which
        redone: had to be trained again because the weights they led to were lost (not in ``samples``).
        lost: batches in flight that a crash took.
        busy: share of the time every gate worked.
        staleness: how often each τ was seen, by gate.
        bytes_by_link: by (from, to).
    """

    schedule: str
    seconds: float
    samples: int
    redone: int = 0
    lost: int = 0
    busy: list[float] = field(default_factory=list)
    staleness: list[dict[int, int]] = field(default_factory=list)
    bytes_by_link: dict[tuple[str, str], int] = field(default_factory=dict)
    events: int = 0

    @property
    def samples_per_s(self) -> float:
        """Goodput: samples trained and kept per virtual second."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def utilisation(self) -> float:
        """Mean share of the time that the gates worked."""
        return sum(self.busy) / len(self.busy) if self.busy else 0.0

    def as_json(self) -> dict[str, object]:
        """Everything, for a file."""
        return {
            "schedule": self.schedule,
            "samples_per_s": self.samples_per_s,
            "seconds": self.seconds,
            "samples": self.samples,
            "redone": self.redone,
            "lost": self.lost,
            "utilisation": self.utilisation,
            "busy": self.busy,
            "staleness": [{str(tau): n for tau, n in sorted(seen.items())} for seen in self.staleness],
            "bytes": {f"{a} > {b}": n for (a, b), n in self.bytes_by_link.items()},
            "events": self.events,
        }
