"""When each replica may begin, and after how many steps it pushes: what a shard knows of their pace."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["StepsBySpeed", "WarmStart"]


class WarmStart:
    """One replica first, then all the others (Dean et al. 2012): the others wait for their first weights.

    Args:
        pushes: of the first replica, before others are let in; it leaving lets them in as well.

    Attributes:
        waiting: the replicas' gates that have asked and were not let in.
    """

    def __init__(self, pushes: int) -> None:
        self.waiting: deque[str] = deque()
        self._pushes = pushes
        self._first: str | None = None

    def admits(self, asker: str, version: int) -> bool:
        """Whether somebody is given weights at once; whoever asks first is the first replica."""
        if self.is_over(version):
            return True
        if self._first is None:
            self._first = asker
        return asker == self._first

    def is_over(self, version: int) -> bool:
        """Whether everybody is given weights."""
        return version >= self._pushes

    def remove(self, who: str) -> bool:
        """Somebody leaves; whether that ends the warm start."""
        if who in self.waiting:
            self.waiting.remove(who)
        return self.finish(who)

    def finish(self, who: str) -> bool:
        """Somebody has no more to push, for now; whether that ends the warm start."""
        if self._first is None or who != self._first:
            return False
        self._pushes = 0
        return True


class StepsBySpeed:
    """How many steps each replica is to make between pushes, so that all push about equally often.

    Dynamic local updates (Liu et al. 2024, arXiv:2401.09135)::

        H_w = max(1, floor(H · v_w / v_max)),    v_w in steps per second, from one push to the next

    Args:
        steps: H, of the fastest; None leaves it to the replicas.
    """

    def __init__(self, steps: int | None) -> None:
        self._steps = steps
        self._since_s: dict[str, float] = {}
        self._per_s: dict[str, float] = {}

    def start(self, who: str, now_s: float) -> None:
        """Somebody asks for weights; its clock starts with the first ones."""
        self._since_s.setdefault(who, now_s)

    def record_push(self, who: str, steps: int, now_s: float) -> None:
        """Somebody made so many steps since it last pushed."""
        seconds = now_s - self._since_s.get(who, now_s)
        if seconds > 0:
            self._per_s[who] = steps / seconds
        self._since_s[who] = now_s

    def steps_of(self, who: str) -> int | None:
        """What to tell it; None while nobody knows how fast it is."""
        if self._steps is None or who not in self._per_s:
            return None
        fastest = max(self._per_s.values())
        return max(1, math.floor(self._steps * self._per_s[who] / fastest)) if fastest else None

    def remove(self, who: str) -> None:
        """Somebody is gone."""
        self._since_s.pop(who, None)
        self._per_s.pop(who, None)
