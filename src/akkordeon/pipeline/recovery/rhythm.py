"""When the next snapshot of a stage is due."""

from __future__ import annotations

__all__ = ["Rhythm"]


class Rhythm:
    """Counts updates or seconds.

    Args:
        every: a whole number of updates, or a float of seconds.
        version: of the stage at the beginning.
    """

    def __init__(self, every: int | float, version: int) -> None:
        self._every = every
        self._since: float | None = version if isinstance(every, int) else None

    def is_due(self, version: int, now_s: float) -> bool:
        """Whether a snapshot is due after an update; then the next is counted from here."""
        at = version if isinstance(self._every, int) else now_s
        if self._since is None:  # the first update begins the time
            self._since = at
        if at - self._since < self._every:
            return False
        self._since = at
        return True
