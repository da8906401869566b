"""Schedules: of how many batches an update is made, who waits for it, and so how old gradients are.

Flush(2):       F0 F1 B0 B1 update │ F2 F3 B2 B3 update │ F4 …        each on the weights of the update before
TwoBuffers(2):  F0 F1 B0 B1 update F4 F5 B4 B5 update F8 …            each on those of one update earlier
F2 F3 B2 B3 update F6 F7 B6 B7 update …
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from akkordeon.core.checks import require_whole

__all__ = ["ASYNC", "Async", "Flush", "Schedule", "TwoBuffers"]


class Schedule(ABC):
    """How many batches of a sentinel may be in flight, and of how many an update is made."""

    is_exact: ClassVar[bool] = True
    """Whether gradients are as old as it says, because sentinels wait for updates."""

    @abstractmethod
    def batches_per_update(self, accumulate: int) -> int:
        """Of how many batches a gate with ``accumulate`` makes an update."""

    @abstractmethod
    def room(self, in_flight: int, trained: int) -> int:
        """How many may be in flight now.

        Args:
            in_flight: the sentinel's own limit.
            trained: batches of the sentinel.
        """


@dataclass(frozen=True)
class Async(Schedule):
    """Gates update as gradients come, and nobody waits for anybody.

    Args:
        warm_up: batches over which a sentinel comes to what it may have in flight, from one: gradients that
            are late do most harm early in training.

    Raises:
        RecipeError: no whole number of at least 0.
    """

    warm_up: int = 0
    is_exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        require_whole("warm_up", self.warm_up, 0)

    def batches_per_update(self, accumulate: int) -> int:
        """As many as the gate says."""
        return accumulate

    def room(self, in_flight: int, trained: int) -> int:
        """As many as the sentinel allows, or fewer while it is new."""
        if trained >= self.warm_up:
            return in_flight
        return 1 + (in_flight - 1) * trained // self.warm_up


ASYNC = Async()


@dataclass(frozen=True)
class Flush(Schedule):
    """All batches of an update come home before the next ones are sent: plain training that accumulates.

    GPipe (Huang et al. 2019, arXiv:1811.06965), and with at most as many batches in flight as there are
    gates PipeDream-Flush (Narayanan et al. 2021, arXiv:2006.09503, section 3.2).

    Args:
        micro_batches: that an update is made of, with the mean of their gradients.

    Raises:
        RecipeError: no whole number of at least 1.
    """

    micro_batches: int

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        require_whole("micro_batches", self.micro_batches)

    def batches_per_update(self, accumulate: int) -> int:
        """As many at every gate."""
        return self.micro_batches

    def room(self, in_flight: int, trained: int) -> int:
        """Those of the update that is next."""
        return min(in_flight, self.micro_batches - trained % self.micro_batches)


@dataclass(frozen=True)
class TwoBuffers(Flush):
    """The batches of the next update are sent meanwhile, and every gradient is one update old.

    W(t+1) = W(t) - η ∇f(W(t-1)), with W(-1) = W(0): PipeDream-2BW (Narayanan et al. 2021, arXiv:2006.09503,
    section 3.1). A gate keeps two versions of its weights.

    With :class:`~akkordeon.Prediction` it is ∇f(W(t-1) + f(1)·(W(t-1) - W(t-2))), and a gate keeps four.
    """

    def room(self, in_flight: int, trained: int) -> int:
        """Those of the update that is next, and of the one after it."""
        return min(in_flight, 2 * self.micro_batches - trained % self.micro_batches)
