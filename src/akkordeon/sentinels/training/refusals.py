"""The batches of a training sentinel that were refused, and when they are so many that it has failed."""

from __future__ import annotations

from collections import OrderedDict

from akkordeon.core.addresses import is_shard
from akkordeon.core.errors import DataError
from akkordeon.core.messages import Batch, Fault, Refused
from akkordeon.core.reports import BatchCount, BatchRefused

__all__ = ["Refusals", "not_finite", "record_of"]

REFUSED_MAX = 10
"""Batches refused in a row after which a sentinel gives up; as many as are in flight, where that is more."""

REFUSED_SHARE_MAX = 0.9
"""The share of batches refused from which a sentinel that has come to its end has failed."""

NOT_TRAINED_MAX = 4096
"""Of so many batches that did not end as trained it is known that they did not."""


class Refusals:
    """Counts what says that something is wrong.

    A batch that was too stale does not count: it says that others are faster.

    Args:
        name: of the sentinel.
        in_flight: how many of its batches may be under way.
    """

    def __init__(self, name: str, in_flight: int) -> None:
        self._name = name
        self._enough = max(REFUSED_MAX, in_flight)
        self._last: Refused | None = None
        self._in_all = 0
        self._in_a_row = 0
        self._before = 0  # in a row, before the latest that came back
        self._not_trained: OrderedDict[int, bool] = OrderedDict()  # whether that says something is wrong

    def __contains__(self, number: object) -> bool:
        """Whether a batch is among the latest that were refused or lost."""
        return number in self._not_trained

    def add(self, why: Refused, *, revoked: bool = False) -> None:
        """A batch was refused; ``revoked``: after it had come back."""
        self.remember(why.batch.number)
        if why.fault is Fault.TOO_STALE:
            return
        self._not_trained[why.batch.number] = True
        self._last = why
        self._in_all += 1
        if revoked:  # others came back before this was known, and may be revoked as well
            # A dropped push takes many batches at once; of how many pushes in a row, its replica counts.
            in_a_row = 0 if is_shard(why.gate) else self._up_to(why.batch.number)
            self._in_a_row = self._before = max(self._before + 1, in_a_row)
        else:
            self._in_a_row += 1

    def _up_to(self, number: int) -> int:
        """How many batches in a row were refused, the last of them this one; those too stale not counted."""
        found = 0
        while number in self._not_trained and found < self._enough:
            found += self._not_trained[number]
            number -= 1
        return found

    def remember(self, *numbers: int) -> None:
        """Batches are not among those trained: nothing that is still to come takes them from these again."""
        self._not_trained.update(dict.fromkeys(numbers, False))
        while len(self._not_trained) > NOT_TRAINED_MAX:
            self._not_trained.popitem(last=False)

    def count_trained(self) -> None:
        """A batch came back."""
        self._before, self._in_a_row = self._in_a_row, 0

    def raise_if_too_many(self, batches: BatchCount, over: bool) -> None:
        """Fail where too many in a row were refused, or at the end nearly all.

        Args:
            batches: of the sentinel so far.
            over: it has come to its end.

        Raises:
            DataError: they were.
        """
        if self._last is None:
            return
        sent, trained = batches.sent, batches.trained
        if not trained and (self._in_a_row >= self._enough or over):
            what = f"all {batches.refused} of its batches were refused"
        elif self._in_a_row >= self._enough:
            what = f"{self._in_a_row} of its batches in a row were refused, after {trained} were trained"
        elif over and self._in_all >= max(REFUSED_MAX, REFUSED_SHARE_MAX * sent):
            what = f"{self._in_all} of its {sent} batches were refused"
        else:
            return
        why = f"{what}; {record_of(self._name, self._last)}"
        if trained and self._last.fault is Fault.NOT_FINITE:
            why += "; if training diverges, lower the learning rate or put fewer batches in flight"
        raise DataError(why) from self._last.error


def not_finite(batch: Batch, by: str, loss: float) -> Refused:
    """A batch has a loss that is no finite number."""
    return Refused(batch, by, Fault.NOT_FINITE, f"its loss is {loss}, expected a finite number")


def record_of(sentinel: str, why: Refused) -> BatchRefused:
    """A refusal as watchers hear of it."""
    return BatchRefused(sentinel, why.batch.number, why.gate, why.fault.name.lower(), why.reason)
