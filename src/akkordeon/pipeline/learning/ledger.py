"""Which batches a gate has learned from: so few numbers that they travel with every cut.

A sentinel numbers its batches as it sends them, and has a bounded number under way. So all below the highest
that came are done but a few; those are listed.
"""

from __future__ import annotations

from collections.abc import Mapping

from akkordeon.core.messages import Batch
from akkordeon.core.plain_state import Applied

__all__ = ["Ledger"]

LISTED_MAX = 1024
"""Of one sentinel; of more, as where many were refused before they came here, the lowest count as done."""


class Ledger:
    """Keeps, of every sentinel, the batches that were learned from.

    Args:
        applied: what it goes on from.
    """

    def __init__(self, applied: Mapping[str, Applied]) -> None:
        self._next = {sentinel: each.next for sentinel, each in applied.items()}
        self._missing = {
            sentinel: dict.fromkeys(sorted(each.missing))
            for sentinel, each in applied.items()
            if each.missing
        }

    def add(self, batch: Batch) -> None:
        """A batch was learned from."""
        sentinel, number = batch
        expected = self._next.get(sentinel, 0)
        if number == expected:
            self._next[sentinel] = number + 1
        elif number < expected:
            self._missing.get(sentinel, {}).pop(number, None)
        else:
            missing = self._missing.setdefault(sentinel, {})
            missing.update(dict.fromkeys(range(max(expected, number - LISTED_MAX), number)))
            self._next[sentinel] = number + 1
            while len(missing) > LISTED_MAX:
                del missing[next(iter(missing))]

    def forget(self, sentinel: str, number: int | None) -> None:
        """A batch will not come; with ``None`` nothing of the sentinel will."""
        if number is None:
            self._next.pop(sentinel, None)
            self._missing.pop(sentinel, None)
        elif number == self._next.get(sentinel, 0):
            self._next[sentinel] = number + 1
        elif number in self._missing.get(sentinel, ()):
            del self._missing[sentinel][number]

    def forget_before(self, sentinel: str, number: int) -> None:
        """Below this number nothing of the sentinel will come."""
        if number > self._next.get(sentinel, 0):
            self._next[sentinel] = number
        self._missing.pop(sentinel, None)

    def applied(self) -> dict[str, Applied]:
        """What there is to tell."""
        return {
            sentinel: Applied(number, frozenset(self._missing.get(sentinel, ())))
            for sentinel, number in self._next.items()
        }
