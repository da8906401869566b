"""Sentinels that fail or are lost: each ends alone, and goes on where it was if its recipe says so.

    ActorFailed ─▶ its last words ────────────────────┐
    ActorLost ───▶ the gates say where it was ────────┴▶ it has ended ─▶ [wait] ─▶ restarted

One whose restarts are too many within the time, or that Akkordeon itself refused, has ended for good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from akkordeon.core.addresses import reader_of
from akkordeon.core.errors import AkkordeonError, ClusterError, SentinelFailedError, explain
from akkordeon.core.messages import Close, Forget, Message
from akkordeon.core.reports import ActorFailed, ActorLost, BatchCount, SentinelRestarted
from akkordeon.engines.base import Engine
from akkordeon.pipeline.recovery.recipe import Recovery
from akkordeon.session.attachment import Attachment
from akkordeon.session.recovery.lost import LostSentinels
from akkordeon.session.recovery.restart_limit import RestartLimit

__all__ = ["SentinelRecovery"]


@dataclass
class _Returning:
    """A sentinel that failed, and has not ended for good."""

    limit: RestartLimit
    times: int = 0  # that it came back
    why: str = ""
    back_s: float = 0.0  # the engine's time, from which on it may be at work again
    is_away: bool = False  # from its end until it is at work again


class SentinelRecovery:
    """Ends sentinels, and has them go on. Reports are heard one at a time; any thread may stop it.

    Args:
        recovery: how often one may come back, and when.
        engine: knows the time.
        send: carries a message to an actor.
        tell: has those who look on see a record.
        end: is told that a sentinel has ended without last words, and where its batches went.
        is_away: whether a gate is gone, and comes back.

    Attributes:
        lost: asks the gates where lost ones were.
    """

    def __init__(
        self,
        recovery: Recovery,
        engine: Engine,
        *,
        send: Callable[[str, Message], None],
        tell: Callable[[Any], None],
        end: Callable[[Attachment, BatchCount | None], None],
        is_away: Callable[[str], bool],
    ) -> None:
        self.lost = LostSentinels(engine, send, end, is_away)
        self._recovery = recovery
        self._engine = engine
        self._send = send
        self._tell = tell
        self._end = end
        self._returning: dict[Attachment, _Returning] = {}
        self._over = False

    def stop(self) -> None:
        """Have none come back from now on."""
        self._over = True
        for attachment in list(self._returning):
            self._stay_away(attachment)
        self.lost.give_up()

    # ── what is heard of them ────────────────────────────────────────────────────────────────────────

    def failed(self, attachment: Attachment, record: ActorFailed) -> None:
        """A sentinel or its reader raised; its last words follow."""
        if attachment.error is not None:  # its last words failed too: there will be no others
            self._stay_away(attachment)
            self._end(attachment, None)
            return
        told_to_end = attachment._told_to_end
        what = record.doing if record.batch is None else f"batch {record.batch.number}"
        why = f"failed on {what}: {explain(record.error)}"
        attachment.error = SentinelFailedError(f"sentinel {attachment.name!r} {why}")
        attachment.error.__cause__ = record.error
        if record.address != attachment.address:
            self._send(attachment.address, Close())
        for gate in attachment.row:
            self._send(gate, Forget(attachment.address))
        if not (told_to_end or isinstance(record.error, AkkordeonError)):  # which would only come again
            self._expect(attachment, why, 0.0)

    def gone(self, attachment: Attachment, record: ActorLost) -> None:
        """A sentinel or its reader is lost, and says nothing more."""
        address, told_to_end, why = record.address, attachment._told_to_end, f"is lost: {record.why}"
        attachment.error = SentinelFailedError(f"{address} {why}")
        is_whole = address == attachment.address
        self._send(reader_of(address) if is_whole else attachment.address, Close())
        if not told_to_end:
            self._expect(attachment, why, record.back_after_s or 0.0)
        if is_whole and attachment.role.trains and attachment._saved is not None:
            self.lost.lost(attachment)
        elif is_whole:
            for gate in attachment.row:
                self._send(gate, Forget(address))
            self._end(attachment, None)

    def ended(self, attachment: Attachment) -> None:
        """A sentinel has ended; have it go on if that is expected."""
        returning = self._returning.get(attachment)
        if returning is None or (attachment._comes_back and returning.is_away):
            return
        if not attachment._comes_back:
            del self._returning[attachment]
            return
        returning.is_away = True
        wait_s = returning.back_s - self._engine.now_s()
        if wait_s > 0:
            self._engine.after(wait_s, partial(self._restart, attachment))
        else:
            self._restart(attachment)

    def detached(self, address: str) -> None:
        """A sentinel was to end while it was away."""
        for attachment, returning in list(self._returning.items()):
            if attachment.address == address and returning.is_away:
                self._stay_away(attachment)

    # ── going on ─────────────────────────────────────────────────────────────────────────────────────

    def _expect(self, attachment: Attachment, why: str, least_s: float) -> None:
        """Note whether one that is gone will go on once it has ended, and in how many seconds at least."""
        if self._over or attachment.recipe.on_failure == "fail" or attachment._comes_back:
            return
        new = _Returning(RestartLimit(self._recovery))
        returning = self._returning.setdefault(attachment, new)
        now_s = self._engine.now_s()
        wait_s = returning.limit.wait_s(now_s, why)
        attachment._comes_back = wait_s is not None
        if wait_s is None:
            _add_to_error(attachment, returning.limit.story())
            return
        attachment._told_to_end = False  # nobody but we did
        returning.why, returning.back_s, returning.is_away = why, now_s + max(wait_s, least_s), False

    def _restart(self, attachment: Attachment) -> None:
        if attachment in self._returning:
            restart = partial(attachment._session._restart, attachment)
            self._engine.meanwhile(restart, partial(self._is_back, attachment))

    def _is_back(self, attachment: Attachment, failure: Exception | None) -> None:
        """One goes on, or cannot."""
        returning = self._returning.get(attachment)
        if returning is None:  # it was to end meanwhile
            self._send(attachment.address, Close())
        elif failure is not None:
            self._could_not(attachment, failure)
        else:
            returning.times += 1
            returning.is_away &= attachment._comes_back  # it may have ended again by now
            self._tell(SentinelRestarted(attachment.name, returning.why, returning.times))

    def _could_not(self, attachment: Attachment, failure: Exception) -> None:
        why = f"could not go on: {explain(failure)}"
        attachment._comes_back = False
        if isinstance(failure, ClusterError):  # to another process, or when there is one
            self._expect(attachment, why, 0.0)
        if attachment._comes_back:
            self.ended(attachment)
        else:
            _add_to_error(attachment, f"; it {why}")
            self._stay_away(attachment)

    def _stay_away(self, attachment: Attachment) -> None:
        """It does not go on."""
        returning = self._returning.pop(attachment, None)
        attachment._comes_back = False
        if returning is not None and returning.is_away:
            attachment.ended = True


def _add_to_error(attachment: Attachment, more: str) -> None:
    error = attachment.error
    assert error is not None, "it failed"
    attachment.error = type(error)(f"{error}{more}")
    attachment.error.__cause__ = error.__cause__
