"""A session as a notebook shows it: its sentinels and gates as they were last heard of; nobody is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from akkordeon.core.notebook.html import card, table
from akkordeon.session.attachment import Attachment

if TYPE_CHECKING:
    from akkordeon.session.session import Session

__all__ = ["session_html"]

SHOWN_MAX = 100
"""So many sentinels, and so many gates; of more, the first."""


def session_html(self: Session) -> str:
    """What a notebook shows."""
    sentinels = [list(_sentinel(a)) for a in self.attachments[:SHOWN_MAX]]
    gates = list(_gates(self))
    parts = []
    if sentinels:
        parts.append(table(("sentinel", "role", "done", "loss", "scores", "how"), sentinels))
    if gates:
        parts.append(table(("gate", "version", "τ mean", "τ max"), gates))
    return card(repr(self).strip("<>"), *parts)


def _sentinel(attachment: Attachment) -> Iterator[str]:
    rounds = attachment.epochs or attachment.rounds
    yield attachment.name
    yield str(attachment.role)
    yield attachment._done_in_words
    yield f"{rounds[-1].loss:.4f}" if rounds else ""
    yield ", ".join(f"{name} {value:.4f}" for name, value in rounds[-1].scores.items()) if rounds else ""
    yield "at work" if not attachment.ended else "failed" if attachment.error else "ended"


def _gates(session: Session) -> Iterator[tuple[str, ...]]:
    heard = session._supervisor.gates
    for address in session._topology.row[:SHOWN_MAX]:
        gate = heard.get(address)
        if gate is not None:
            yield (
                gate.name,
                f"{gate.version:,}",
                f"{gate.staleness_mean:.1f}",
                str(gate.staleness_max),
            )
