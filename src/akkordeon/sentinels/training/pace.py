"""How many batches a training sentinel may have in flight, by the schedule of its network."""

from __future__ import annotations

from collections.abc import Sequence

from akkordeon.core.schedules import Schedule

__all__ = ["Pace"]


class Pace:
    """How many batches a sentinel may have in flight, and whether it knows where in an update its gates are.

    A sentinel and its gates count the batches of an update each by itself. Where they may have parted, it
    sends no more, has the gates settle when nothing is in flight, and counts from there.

    Args:
        schedule: of the network.
        in_flight: the sentinel's own limit.
    """

    def __init__(self, schedule: Schedule, in_flight: int) -> None:
        self._schedule, self._in_flight = schedule, in_flight
        self._from: int | None = None if schedule.is_exact else 0

    @property
    def is_known(self) -> bool:
        """Whether it knows where in an update the gates are, or need not."""
        return self._from is not None

    def lose(self) -> None:
        """Gates may have gathered other batches than came back."""
        if self._schedule.is_exact:
            self._from = None

    def count_from(self, trained: int) -> None:
        """All gates have made updates of what they had gathered."""
        if self._schedule.is_exact:
            self._from = trained

    def room(self, trained: int) -> int:
        """How many batches may be in flight now, of a sentinel of which so many were trained."""
        return 0 if self._from is None else self._schedule.room(self._in_flight, trained - self._from)

    def as_plain(self, trained: int, *, in_cut: bool) -> list[int] | None:
        """From where it counts updates of how many batches; None where another is to settle first.

        Args:
            trained: of the batches that another goes on from.
            in_cut: these are in the weights of a cut. The gates may have settled since.
        """
        if not self._schedule.is_exact or self._from is None or (in_cut and trained <= self._from):
            return None
        return [self._from, self._schedule.batches_per_update(1)]

    def go_on_from(self, counted: Sequence[int] | None) -> None:
        """Count as another one did that said this, if updates are of as many batches now."""
        if self._schedule.is_exact and counted and counted[1] == self._schedule.batches_per_update(1):
            self._from = counted[0]
