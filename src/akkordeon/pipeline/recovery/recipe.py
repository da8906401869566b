"""The recipe of recovery: how often gates are kept, and how often one may come back."""

from __future__ import annotations

from dataclasses import dataclass

from akkordeon.core.checks import require_above, require_seconds, require_whole
from akkordeon.core.errors import RecipeError

__all__ = ["Recovery"]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How a gate that raises or is lost comes back: alone, from its latest snapshot, while the others go on.

    Args:
        snapshot_every: a whole number of updates, or a float of seconds, between two snapshots of a gate.
            What it learned since the latest is what its coming back costs.
        restarts: of one gate that are made ``within_s``; one more ends the session.
        within_s: seconds.
        backoff_s: the first is made at once, the second after so many seconds, each further one after twice
            as many as the one before.

    Raises:
        RecipeError: a number of another kind, or out of range.
    """

    snapshot_every: int | float = 100
    restarts: int = 3
    within_s: float = 60.0
    backoff_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what could only fail when it is needed."""
        if isinstance(self.snapshot_every, bool):
            raise RecipeError("snapshot_every is a number of updates or seconds, got a bool")
        require_above("snapshot_every", self.snapshot_every)
        require_whole("restarts", self.restarts)
        require_above("within_s", self.within_s)
        require_seconds("backoff_s", self.backoff_s)
        if self.backoff_s < 0:
            raise RecipeError(f"backoff_s is at least 0, got {self.backoff_s!r}")

    @property
    def updates_between(self) -> int:
        """Updates between two snapshots; 0 where seconds say when."""
        return self.snapshot_every if isinstance(self.snapshot_every, int) else 0

    def wait_s(self, restart: int) -> float:
        """Seconds before a restart is made, counted from 1 within the time."""
        return 0.0 if restart <= 1 else self.backoff_s * 2 ** (restart - 2)
