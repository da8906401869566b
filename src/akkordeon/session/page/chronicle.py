"""From the records of a session to curves and the log of what came, went, failed, was refused, recovered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from akkordeon.core.addresses import is_sentinel
from akkordeon.core.errors import explain
from akkordeon.core.reports import (
    ActorFailed,
    ActorLost,
    ActorReturned,
    BatchRefused,
    ClusterLost,
    EpochDone,
    GateRestarted,
    MessageRefused,
    PeerRefused,
    RoundDone,
    SentinelRestarted,
    TrainingProgress,
)
from akkordeon.core.streams.reports import DriftAlarm, ShadowTried, StreamReport
from akkordeon.core.surgery.reports import Changed, RowChanged
from akkordeon.session.attachment import Attachment
from akkordeon.session.page.history import History

__all__ = ["Chronicle", "state_of"]

REFUSED_EVERY_S = 5.0
"""Refusals of one kind have a line so often; what comes between is counted."""

KINDS_MAX = 1000
"""Kinds of refusals that are counted apart."""


class Chronicle:
    """Writes what a session reports into a history; for one thread at a time.

    Args:
        history: where it goes.

    Attributes:
        settings: with which gates were told to learn, by address and name, in words.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self.settings: dict[str, dict[str, str]] = {}
        self._states: dict[str, str] = {}  # of sentinels, by address
        self._told_within: set[str] = set()  # sentinels that have reported from within their epoch
        self._refused: dict[tuple[str, str], tuple[float, int]] = {}  # when told last, and how many since

    def before(self, attachments: Iterable[Attachment]) -> None:
        """Take up what sentinels had reported before anybody watched."""
        for attachment in attachments:
            records = attachment.epochs or attachment.rounds  # of which the latest alone are kept
            seconds = attachment.seconds - sum(record.seconds for record in records)
            for record in records:
                seconds += record.seconds
                self._points(record.sentinel, {"loss": record.loss, **record.scores}, seconds)

    def see(self, attachments: Iterable[Attachment]) -> None:
        """Note which sentinels have come, and which have ended, and how; ``attachments``: all there are."""
        states, self._states = self._states, {}
        for attachment in attachments:
            if attachment.role.answers:
                continue
            state, before = state_of(attachment), states.get(attachment.address)
            self._states[attachment.address] = state
            if before is None:
                self._history.note("came", attachment.name, f"came to {attachment.role}")
            if state == before or state == "at work":
                continue
            if attachment.error is not None:
                self._history.note("failed", attachment.name, f"failed: {explain(attachment.error)}")
            else:
                self._history.note("went", attachment.name, f"{state}, after {attachment._done_in_words}")

    def tell(self, record: Any) -> None:
        """Write down a record."""
        if isinstance(record, TrainingProgress):
            self._told_within.add(record.sentinel)
            self._points(record.sentinel, {"loss": record.loss, **record.scores})
        elif isinstance(record, EpochDone):
            if record.sentinel in self._told_within:  # a mean over the epoch would fit in badly
                self._told_within.discard(record.sentinel)
            else:
                self._points(record.sentinel, {"loss": record.loss, **record.scores})
        elif isinstance(record, RoundDone):
            self._points(record.sentinel, {"loss": record.loss, **record.scores})
            if record.best:
                self._history.note("noted", record.sentinel, f"round {record.round} is the best so far")
        elif isinstance(record, StreamReport):
            self._points(record.sentinel, record.window)
        else:
            self._event(record)

    def _points(self, who: str, values: dict[str, float], seconds: float | None = None) -> None:
        for measure, value in values.items():
            self._history.point(who, measure, value, seconds)

    def _event(self, record: Any) -> None:
        note = self._history.note
        if isinstance(record, BatchRefused):
            why = f"refused a batch of {record.sentinel}: {record.reason}"
            self._refusal(record.gate, f"{record.sentinel} {record.fault}", why)
        elif isinstance(record, MessageRefused):
            self._refusal(record.by, "message", f"refused a message: {record.reason}")
        elif isinstance(record, PeerRefused):
            note("refused", record.by, f"takes no more of {record.sender}: {record.reason}")
        elif isinstance(record, GateRestarted):
            lost = f"{record.updates_lost} updates back"
            note("recovered", record.address, f"{record.why}; it was made anew, {lost}")
        elif isinstance(record, SentinelRestarted):
            note("recovered", record.sentinel, f"{record.why}; it goes on where it was")
        elif isinstance(record, ActorReturned):
            note("recovered", record.address, "was made anew")
        elif isinstance(record, ActorFailed):
            if not is_sentinel(record.address):  # of those `see` tells more
                note("failed", record.address, f"failed on {record.doing}: {explain(record.error)}")
        elif isinstance(record, ActorLost):
            note("failed", record.address, f"is lost: {record.why}")
        elif isinstance(record, ClusterLost):
            note("failed", "the network", record.why)
        elif isinstance(record, RowChanged):
            for address in record.came:
                note("came", address, "is part of the row")
            for address in record.left:
                note("went", address, "has left the row")
        elif isinstance(record, Changed):
            self._changed(record)
        elif isinstance(record, DriftAlarm | ShadowTried):
            note("noted", record.sentinel, str(record).removeprefix(f"{record.sentinel}: "))

    def _changed(self, record: Changed) -> None:
        settings = {name: _in_words(value) for name, value in record.settings.items()}
        why_not = ""
        if record.error is None:
            self.settings[record.address] = {**self.settings.get(record.address, {}), **settings}
        else:
            why_not = f", which it cannot: {explain(record.error)}"
        how = ", ".join(f"{name}={value}" for name, value in settings.items())
        self._history.note("changed", record.address, f"was told to learn with {how}{why_not}")

    def _refusal(self, by: str, kind: str, text: str) -> None:
        """Tell of a refusal, unless one like it was told of just now."""
        now_s = self._history.seconds
        told_s, more = self._refused.get((by, kind), (float("-inf"), 0))
        if now_s - told_s < REFUSED_EVERY_S:
            self._refused[by, kind] = told_s, more + 1
            return
        if len(self._refused) >= KINDS_MAX:
            self._refused.clear()
        self._refused[by, kind] = now_s, 0
        self._history.note("refused", by, text + (f" ({more:,} more like it before)" if more else ""))


def state_of(attachment: Attachment) -> str:
    """How a sentinel is, in a word or two."""
    if not attachment.ended:
        return "at work"
    return "failed" if attachment.error else "stopped" if attachment.stopped else "ended"


def _in_words(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", None) or repr(value)
