"""Which batches a gate has learned from: so few numbers that they travel with every cut.

A sentinel numbers its batches as it sends them, and has a bounded number under way. So all below the highest
that came are done but a few; those are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from akkordeon.core.messages import Batch
from akkordeon.core.plain_state import Applied

__all__ = ["Ledger"]

LISTED_MAX = 1024
"""Of one sentinel; of more, as where many were refused before they came here, the lowest count as done."""


SENTINELS_MAX = 4096
"""So many that were heard of last are known at least, and twice as many at most."""

GONE_MAX = 64
"""Sentinels of which nothing will come any more that are kept, in case somebody asks."""


@dataclass(slots=True)
class _Account:
    """Of one sentinel, all below ``next`` are done but the missing."""

    next: int = 0
    missing: dict[int, None] = field(default_factory=dict)

    def as_applied(self) -> Applied:
        return Applied(self.next, frozenset(self.missing))


class Ledger:
    """Keeps, of every sentinel, the batches that were learned from.

    Args:
        applied: what it goes on from.
    """

    def __init__(self, applied: Mapping[str, Applied]) -> None:
        self._recent = {
            sentinel: _Account(each.next, dict.fromkeys(sorted(each.missing)))
            for sentinel, each in applied.items()
        }
        self._earlier: dict[str, _Account] = {}
        self._gone: dict[str, _Account] = {}

    def _account(self, sentinel: str) -> _Account:
        """The account of a sentinel; of those that were not heard of for long it is given up."""
        account = self._recent.get(sentinel)
        if account is None:
            account = self._earlier.pop(sentinel, None) or _Account()
            if len(self._recent) >= SENTINELS_MAX:
                self._earlier, self._recent = self._recent, {}
            self._recent[sentinel] = account
        return account

    def __contains__(self, batch: Batch) -> bool:
        """Whether a batch was learned from, or will not come."""
        account = self._recent.get(batch.sentinel) or self._earlier.get(batch.sentinel)
        return account is not None and batch.number < account.next and batch.number not in account.missing

    def add(self, batch: Batch) -> None:
        """A batch was learned from."""
        account, number = self._account(batch.sentinel), batch.number
        if number == account.next:
            account.next = number + 1
        elif number < account.next:
            account.missing.pop(number, None)
        else:
            missing = account.missing
            missing.update(dict.fromkeys(range(max(account.next, number - LISTED_MAX), number)))
            account.next = number + 1
            while len(missing) > LISTED_MAX:
                del missing[next(iter(missing))]

    def forget(self, sentinel: str, number: int | None) -> None:
        """A batch will not come; with ``None`` nothing of the sentinel will."""
        if number is None:
            account = self._recent.pop(sentinel, None) or self._earlier.pop(sentinel, None)
            if account is not None and sentinel not in self._gone:
                self._gone[sentinel] = account
                if len(self._gone) > GONE_MAX:
                    del self._gone[next(iter(self._gone))]
            return
        account = self._account(sentinel)
        if number == account.next:
            account.next = number + 1
        else:
            account.missing.pop(number, None)

    def forget_before(self, sentinel: str, number: int) -> None:
        """Below this number nothing of the sentinel will come."""
        account = self._account(sentinel)
        account.next = max(account.next, number)
        account.missing.clear()

    def of(self, sentinel: str) -> Applied:
        """What there is to tell of one, which may be gone."""
        account = self._gone.get(sentinel) or self._recent.get(sentinel) or self._earlier.get(sentinel)
        return Applied() if account is None else account.as_applied()

    def applied(self) -> dict[str, Applied]:
        """What there is to tell of those that are not gone."""
        return {
            sentinel: account.as_applied() for sentinel, account in (self._earlier | self._recent).items()
        }
