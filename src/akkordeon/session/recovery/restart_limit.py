"""How often one may come back within a time, how long it waits each time, and the story of its ends."""

from __future__ import annotations

from collections import deque

from akkordeon.pipeline.recovery.recipe import Recovery

__all__ = ["RestartLimit"]


class RestartLimit:
    """The latest ends of one actor.

    Args:
        recovery: how often it may come back.
    """

    def __init__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._ends: deque[tuple[float, str]] = deque()  # when and why it was gone

    def wait_s(self, now_s: float, why: str) -> float | None:
        """It is gone: seconds until it may come back; None, and not counted, where that is too often."""
        recovery, ends = self._recovery, self._ends
        while ends and ends[0][0] < now_s - recovery.within_s:
            ends.popleft()
        if len(ends) >= recovery.restarts:
            return None
        ends.append((now_s, why))
        return recovery.wait_s(len(ends))

    def story(self) -> str:
        """How often one that may not come back did so, and why, to follow its last failure; or nothing."""
        recovery, whys = self._recovery, [why for _, why in self._ends]
        if len(whys) < recovery.restarts:
            return ""
        return (
            f"; it was made anew {len(whys)} times in the {recovery.within_s:g} s before that, the most "
            f"allowed ({'; '.join(whys)})"
        )
