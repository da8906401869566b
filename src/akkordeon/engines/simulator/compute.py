"""What work costs: seconds per message for every actor, and who is slow when.

    take a message ─▶ [before] ─▶ effects are carried out ─▶ [after] ─▶ free for the next

``after`` is what a gate does once the gradient is on its way to the gate before it: the update.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random

from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Message
from akkordeon.engines.simulator.distributions import Distribution

__all__ = ["Compute", "Cost", "Slowdown", "Work"]


@dataclass(frozen=True)
class Cost:
    """Seconds that an actor works on a message.

    Args:
        forward_s: of a Forward (for a sentinel: the loss and its gradient).
        backward_s: of a Backward until its effects.
        update_s: of a Backward after them.
        evaluate_s: of an Evaluate.
        message_s: of every message, these too: the engine's own work.
        table: (before, after) by name of the message, where it was measured; goes before all these.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    update_s: float = 0.0
    evaluate_s: float = 0.0
    message_s: float = 0.0
    table: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is below 0: these are times."""
        for name in ("forward_s", "backward_s", "update_s", "evaluate_s", "message_s"):
            if not getattr(self, name) >= 0:
                raise RecipeError(f"{name} is at least 0, got {getattr(self, name)}")

    @property
    def batch_s(self) -> float:
        """Seconds for a batch, there and back."""
        by_message = self.by_message()
        return sum(by_message["Forward"] + by_message["Backward"])

    def by_message(self) -> dict[str, tuple[float, float]]:
        """(before, after) by name of the message."""
        return {
            "Forward": (self.message_s + self.forward_s, 0.0),
            "Backward": (self.message_s + self.backward_s, self.update_s),
            "Evaluate": (self.message_s + self.evaluate_s, 0.0),
            "": (self.message_s, 0.0),
            **self.table,
        }


@dataclass(frozen=True)
class Slowdown:
    """A straggler: slow all the time, or in phases.

    Args:
        who: address of an actor, with ``*`` as in file names.
        factor: so many times slower.
        share: of the time that it is slow.
        phase_s: mean length of a slow phase, when it is not slow all the time.

    Raises:
        RecipeError: a number out of range.
    """

    who: str
    factor: float
    share: float = 1.0
    phase_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no straggler."""
        if not self.factor > 0 or not 0 < self.share <= 1 or not self.phase_s > 0:
            raise RecipeError(f"a slowdown has factor > 0, 0 < share <= 1, phase_s > 0; got {self}")


@dataclass(frozen=True)
class Compute:
    """The costs of all actors.

    Args:
        costs: by address, with ``*`` as in file names; the first that fits counts, no fit costs nothing.
        slowdowns: who is slower than that, and when.
        spread: a factor drawn for every message; none if not given.
    """

    costs: Mapping[str, Cost] = field(default_factory=dict)
    slowdowns: Sequence[Slowdown] = ()
    spread: Distribution | None = None

    def of(self, address: str) -> Cost:
        """The cost of an actor."""
        for pattern, cost in self.costs.items():
            if fnmatchcase(address, pattern):
                return cost
        return Cost()


class Work:
    """How long one actor works, in a simulation.

    Args:
        compute: all costs.
        address: of the actor.
        seed: of everything drawn here.
    """

    __slots__ = ("_by_message", "_phases", "_rng", "_spread")

    def __init__(self, compute: Compute, address: str, seed: str) -> None:
        self._by_message = compute.of(address).by_message()
        self._rng = Random(f"{seed} work {address}")
        self._spread = compute.spread
        self._phases = [
            _Phases(slowdown, Random(f"{seed} phases {i} {address}"))
            for i, slowdown in enumerate(compute.slowdowns)
            if fnmatchcase(address, slowdown.who)
        ]

    @property
    def is_free(self) -> bool:
        """Whether nothing this actor does takes any time."""
        return not any(before or after for before, after in self._by_message.values())

    def seconds(self, message: Message, now_s: float) -> tuple[float, float]:
        """(before, after) its effects, of a message taken now."""
        return self.seconds_of(type(message).__name__, now_s)

    def seconds_of(self, name: str, now_s: float) -> tuple[float, float]:
        """(before, after) its effects, of a message of that name."""
        by_message = self._by_message
        found = by_message.get(name)
        if found is None:
            found = by_message[""]
        if not self._phases and self._spread is None:
            return found
        factor = self.factor(now_s)
        return found[0] * factor, found[1] * factor

    def factor(self, now_s: float) -> float:
        """How many times slower than its cost the actor is now."""
        factor = 1.0 if self._spread is None else self._spread.draw(self._rng)
        for phases in self._phases:
            factor *= phases.factor(now_s)
        return factor


class _Phases:
    """Slow and normal phases in turn, drawn as far as they are needed."""

    def __init__(self, slowdown: Slowdown, rng: Random) -> None:
        self._slowdown = slowdown
        self._rng = rng
        self._turns = [0.0]  # normal from here, slow from the next, …

    def factor(self, now_s: float) -> float:
        if self._slowdown.share == 1:
            return self._slowdown.factor
        slow_s = self._slowdown.phase_s
        normal_s = slow_s * (1 - self._slowdown.share) / self._slowdown.share
        while self._turns[-1] <= now_s:
            mean_s = normal_s if len(self._turns) % 2 else slow_s
            self._turns.append(self._turns[-1] + self._rng.expovariate(1 / mean_s))
        is_slow = bisect_right(self._turns, now_s) % 2 == 0
        return self._slowdown.factor if is_slow else 1.0
