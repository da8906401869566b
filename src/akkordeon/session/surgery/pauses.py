"""Who begins while the row is being changed: at once and paused then, or when that is done.

    steady ──begin_pause──▶ pausing ──is_paused──▶ rewiring ──end──▶ steady

Nobody waits here: a sentinel that comes in the wrong moment is there, and is told to begin a little later.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from enum import Enum

from akkordeon.core.messages import Message
from akkordeon.core.surgery.messages import Pause, Resume
from akkordeon.session.attachment import Attachment
from akkordeon.session.outbox import Outbox
from akkordeon.session.registry import Registry
from akkordeon.session.topology import RowTopology

__all__ = ["Pauses"]

Messages = list[tuple[str, Message]]


class _Phase(Enum):
    STEADY = 0
    PAUSING = 1
    REWIRING = 2


class Pauses:
    """Tells sentinels to begin, to pause and to go on. Any thread may come.

    Args:
        topology: knows the row.
        registry: knows the sentinels.
        outbox: carries what they are told.
    """

    def __init__(self, topology: RowTopology, registry: Registry, outbox: Outbox) -> None:
        self._topology = topology
        self._registry = registry
        self._outbox = outbox
        self._lock = threading.Lock()  # never held while something is sent
        self._phase = _Phase.STEADY
        self._late: list[tuple[Sequence[Attachment], Sequence[tuple[str, Message]]]] = []
        self._at_rest: set[str] = set()

    def begin(self, attachments: Sequence[Attachment], messages: Sequence[tuple[str, Message]]) -> None:
        """Have sentinels that were made begin with some messages."""
        with self._lock:
            if self._phase is _Phase.REWIRING:
                self._late.append((attachments, messages))
                return
            to_send = self._entering(attachments, messages)
        self._outbox.send_all(to_send)

    def _entering(
        self, attachments: Sequence[Attachment], messages: Sequence[tuple[str, Message]]
    ) -> Messages:
        """What sentinels are told that begin now; one may have been made for a row that is no more."""
        to_send: Messages = []
        for each in attachments:
            made_for, each._has_begun = each.row, True
            self._registry.rewire(each, self._topology.row_now(made_for))
            if each.row != made_for:
                to_send.append((each.address, Resume(each.row)))
        pauses = [(each.address, Pause()) for each in attachments if self._phase is _Phase.PAUSING]
        return [*to_send, *messages, *pauses]

    def _begun(self) -> list[Attachment]:
        return [each for each in self._registry.at_work() if each._has_begun]

    def begin_pause(self) -> None:
        """Have nobody begin anything new."""
        with self._lock:
            self._phase = _Phase.PAUSING
            self._at_rest.clear()
            begun = self._begun()
        self._outbox.send_all([(each.address, Pause()) for each in begun])

    def at_rest(self, address: str) -> None:
        """A sentinel has nothing under way."""
        self._at_rest.add(address)

    def is_paused(self) -> bool:
        """Whether nothing is under way; from then on whoever comes begins when the pause is over."""
        with self._lock:
            if all(each.address in self._at_rest for each in self._begun()):
                self._phase = _Phase.REWIRING
            return self._phase is _Phase.REWIRING

    def end(self) -> None:
        """Have all go on with the row that there is now, and those begin who came meanwhile."""
        with self._lock:
            self._phase = _Phase.STEADY
            late, self._late = self._late, []
            begun = self._begun()
            for each in begun:
                self._registry.rewire(each, self._topology.row_now(each.row))
            to_send: Messages = [(each.address, Resume(each.row)) for each in begun]
            for attachments, messages in late:
                to_send += self._entering(attachments, messages)
        self._outbox.send_all(to_send)
