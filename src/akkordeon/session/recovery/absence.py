"""A network that went away, and sentinels that wait for it and go on where they were.

    it is lost ─▶ the sentinels close, and say where they are ─▶ leave ─▶ … ─▶ join ─▶ they go on

What was under way counts as lost. A sentinel whose process died goes on where it had told last that it was.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from akkordeon.core.errors import AkkordeonError, explain
from akkordeon.core.messages import Close, Detach, Message
from akkordeon.core.plain_state import PlainState
from akkordeon.core.reports import ActorFailed, ActorLost, ClusterLost, SentinelEnded, Undelivered
from akkordeon.data.position import SourcePosition
from akkordeon.session.attachment import Attachment
from akkordeon.session.registry import Registry

__all__ = ["Absence", "ReturningEngine"]

CLOSE_S = 5.0
"""How long sentinels have the time to say where they are."""

LEAVE_S = 30.0
"""How long leaving what is dead may take besides, at most."""

LOG = logging.getLogger(__name__)


class ReturningEngine(Protocol):
    """An engine whose network may go away, and come again."""

    target: str

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox."""

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait for reports."""

    def report(self, record: Any) -> None:
        """Have the session hear of something."""

    def come_again(self, timeout_s: float, given_up: threading.Event) -> None:
        """Leave the network, and join it once it is there; raise if that is not in time."""


class Absence:
    """Hears the reports of a session's engine first, and keeps from the session that its network is away.

    Args:
        engine: whose network may go away.
        row: its gates.
        registry: knows the sentinels.
        relaunch: has sentinels go on, each from where it was.
        patience_s: how long they wait for it.
    """

    def __init__(
        self,
        engine: ReturningEngine,
        row: Sequence[str],
        registry: Registry,
        relaunch: Callable[[Mapping[Attachment, PlainState | None]], None],
        patience_s: float,
    ) -> None:
        self._engine = engine
        self._row = row
        self._registry = registry
        self._relaunch = relaunch
        self._patience_s = patience_s
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._is_there = threading.Event()
        self._is_there.set()
        self._left: dict[str, SentinelEnded | None] = {}  # by address, what each said in the end

    def hear(self, record: Any) -> bool:
        """Take note of what was reported; whether it is nobody else's business."""
        if not self._is_there.is_set():
            return self._hear_away(record)
        if self._given_up.is_set() or not self._is_loss(record):
            return False
        self._left = {}
        self._is_there.clear()
        self._thread = threading.Thread(
            target=self._wait, args=(_why(record),), name="akkordeon-absence", daemon=True
        )
        self._thread.start()
        return True

    def rearranged(self, row: Sequence[str]) -> None:
        """The network has other gates."""
        self._row = row

    def wait_until_over(self) -> None:
        """Wait until the network is there again, or is waited for no more."""
        self._is_there.wait(self._patience_s + LEAVE_S)

    def give_up(self) -> None:
        """Wait for no network any more."""
        self._given_up.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LEAVE_S)

    def _is_loss(self, record: Any) -> bool:
        of_gate = isinstance(record, ActorLost | ActorFailed) and record.address in self._row
        return of_gate or isinstance(record, ClusterLost)

    def _hear_away(self, record: Any) -> bool:
        if isinstance(record, SentinelEnded):
            self._left[record.address] = record
        elif isinstance(record, ActorLost):
            self._left.setdefault(record.address, None)
        elif isinstance(record, Undelivered):
            self._left.setdefault(record.to, None)
            if isinstance(record.message, Detach):
                self._end(self._registry.by_address.get(record.to))
        return isinstance(record, SentinelEnded | ActorLost | ActorFailed | ClusterLost | Undelivered)

    def _end(self, attachment: Attachment | None) -> None:
        """It waits no more: what it said in the end holds."""
        if attachment is None:
            return
        left = self._left.get(attachment.address)
        self._registry.mark_ended(attachment, None if left is None else left.batches)

    # ── on a thread of its own ───────────────────────────────────────────────────────────────────────

    def _wait(self, why: str) -> None:
        """Wait for the network, and have the sentinels go on."""
        LOG.warning("%s is away (%s); waiting for it up to %g s", self._engine.target, why, self._patience_s)
        waiting = self._registry.at_work()
        for attachment in waiting:
            self._engine.send(attachment.address, Close())
        self._engine.wait_until(lambda: all(a.address in self._left for a in waiting), CLOSE_S)
        try:
            self._engine.come_again(self._patience_s, self._given_up)
        except AkkordeonError as error:
            self._fail(f"{error} (it was lost: {why})")
            return
        self._is_there.set()
        LOG.warning("%s is there again, and its sentinels go on", self._engine.target)
        try:
            self._relaunch({a: start_of(a, self._state_of(a)) for a in self._registry.at_work()})
        except AkkordeonError as error:
            self._fail(f"the sentinels of {self._engine.target} cannot go on: {error}")

    def _state_of(self, attachment: Attachment) -> PlainState | None:
        left = self._left.get(attachment.address)
        return None if left is None else left.state

    def _fail(self, why: str) -> None:
        """End the session."""
        self._given_up.set()
        self._is_there.set()
        for attachment in self._registry.at_work():
            self._end(attachment)
        self._engine.report(ClusterLost(why))


def start_of(attachment: Attachment, left: PlainState | None) -> PlainState | None:
    """What a sentinel goes on from: what it said in the end, else what it had told last."""
    told = left or attachment._saved
    if told is None:
        return None
    start = dict(told)
    if isinstance(attachment.recipe.batches, Iterator):  # it is where it is, and cannot be read again
        start |= {"position": SourcePosition().as_plain(), "source": None, "known": None}
        start["batches"] = list(attachment._batches.as_tuple())
    return start


def _why(record: ActorLost | ActorFailed | ClusterLost) -> str:
    if isinstance(record, ActorLost):
        return f"{record.address} is lost: {record.why}"
    if isinstance(record, ActorFailed):
        return f"{record.address} failed on {record.doing}: {explain(record.error)}"
    return record.why
