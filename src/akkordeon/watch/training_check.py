"""What has to be said at the end of a run: which round was the best, and whether training came to nothing."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from akkordeon.core.messages import Fault
from akkordeon.core.reports import BatchRefused, EpochDone, RoundDone
from akkordeon.session.session import Session
from akkordeon.watch.view import View

__all__ = ["TrainingCheck"]


class TrainingCheck(View):
    """A view that shows nothing and remembers what the end is judged by."""

    def __init__(self) -> None:
        self.best: RoundDone | None = None
        self._epochs: dict[str, EpochDone] = {}
        self._refused: Counter[str] = Counter()
        self._why: dict[str, BatchRefused] = {}

    def tell(self, record: Any) -> None:
        """Remember the last epoch, the best round, and what was refused though nobody asked for that."""
        if isinstance(record, EpochDone):
            self._epochs[record.sentinel] = record
        elif isinstance(record, RoundDone) and record.best:
            self.best = record
        elif isinstance(record, BatchRefused) and record.fault != Fault.TOO_STALE.name.lower():
            self._refused[record.sentinel] += 1
            self._why[record.sentinel] = record

    def complaints(self, session: Session) -> list[str]:
        """A sentence for each training sentinel that has failed to learn, though it did not fail itself."""
        found = []
        for attachment in session.attachments:
            name, sent = attachment.name, attachment.batches.sent
            refused = self._refused[name]
            if not attachment.role.trains or attachment.error is not None:
                continue
            if 2 * refused > sent:
                found.append(
                    f"training has failed: {refused:,} of {sent:,} batches of {name} were refused; "
                    f"the last: {self._why[name]}"
                )
            elif name in self._epochs and not math.isfinite(self._epochs[name].loss):
                found.append(f"training has failed: the loss of {name}'s last epoch is no finite number")
        return found
