"""An actor that refuses what it cannot take, and drops what it was told to forget.

What is refused changes nothing but a count. Whoever sent it hears why; of one sender so many in a row are too
many, and whoever has attached it hears of that. Of a message that is about no batch nobody is known who could
be told: it is reported.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.actor import Actor, Effect, Report, Send
from akkordeon.core.messages import Backward, Batch, Evaluate, Fault, Forward, Refused, batch_of
from akkordeon.core.payload import Payload, nbytes, tensors
from akkordeon.core.reports import MessageRefused, PeerRefused
from akkordeon.core.well_formed import is_identity

__all__ = ["RefusingActor", "keep"]

FORGOTTEN_MAX = 4096
"""Things to drop when they arrive; the oldest is given up when there are more."""

OFFENCES_MAX = 1000
"""Messages of a sentinel refused in a row after which it is detached; 2·``max_in_flight`` where that is more.

A trainer that means well gives up long before, with an error of its own.
"""


def keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    """Remember something to drop when it arrives; of too many the oldest is given up."""
    kept[key] = value
    if len(kept) > FORGOTTEN_MAX:
        kept.popitem(last=False)


class RefusingActor(Actor):
    """What a stage has of this.

    Args:
        address: its own.
        max_in_flight: batches it holds at most.
        max_payload_bytes: that it takes at most of a batch.

    Attributes:
        refusals: how often, by fault.
    """

    def __init__(self, address: str, max_in_flight: int, max_payload_bytes: int) -> None:
        self.address = address
        self.refusals: Counter[Fault] = Counter()
        self._offences_max = max(OFFENCES_MAX, 2 * max_in_flight)
        self._max_payload_bytes = max_payload_bytes
        self._offences: OrderedDict[str, int] = OrderedDict()  # messages refused in a row, by sentinel
        self._forgotten: OrderedDict[tuple[str, int | None], None] = OrderedDict()
        self._forgotten_before: OrderedDict[str, int] = OrderedDict()  # by sender, the first that is not

    def _refuse(self, batch: Batch, fault: Fault, reason: str, error: Exception | None = None) -> Effect:
        self.refusals[fault] += 1
        if fault is not Fault.TOO_STALE and fault is not Fault.LOST:
            in_a_row = self._offences.get(batch.sentinel, 0) + 1
            keep(self._offences, batch.sentinel, in_a_row)
            if in_a_row >= self._offences_max:
                del self._offences[batch.sentinel]
                self._keep_forgotten(batch.sentinel, None)
                return Report(PeerRefused(self.address, batch.sentinel, reason, in_a_row))
        return Send(batch.sentinel, Refused(batch, self.address, fault, reason, error))

    def _refuse_message(
        self, message: object, reason: str, fault: Fault = Fault.MALFORMED
    ) -> Iterator[Effect]:
        """Refuse what is of no use here; only what a sentinel sends of its batches is answered to it."""
        batch = batch_of(message)
        if batch is None or type(message) not in (Forward, Backward, Evaluate) or not is_identity(batch):
            self.refusals[fault] += 1
            yield Report(MessageRefused(self.address, reason))
        elif not self._is_forgotten(batch):
            yield self._refuse(batch, fault, reason)

    def _is_too_large(self, payload: Payload) -> bool:
        if type(payload) is Tensor and payload.layout is torch.strided:
            return payload.nbytes > self._max_payload_bytes
        return sum(map(nbytes, tensors(payload))) > self._max_payload_bytes

    def _refuse_too_large(self, batch: Batch) -> Effect:
        limit = self._max_payload_bytes
        reason = f"its payload has more than {limit:,} bytes, the network's most (max_payload_bytes)"
        return self._refuse(batch, Fault.TOO_LARGE, reason)

    def _keep_forgotten(self, sentinel: str, number: int | None) -> None:
        """Remember what to drop when it arrives."""
        keep(self._forgotten, (sentinel, number), None)

    def _is_forgotten(self, batch: Batch) -> bool:
        forgotten, before = self._forgotten, self._forgotten_before
        return (bool(forgotten) and (batch in forgotten or (batch.sentinel, None) in forgotten)) or (
            bool(before) and batch.number < before.get(batch.sentinel, 0)
        )
