"""Sentinels that are lost without last words: the gates say what they have learned from.

    ActorLost ─▶ SentinelLost ─▶ last gate ─▶ … ─▶ first gate ─▶ Learned ─▶ it has ended, and may go on
                 again, as long as nobody answers

What it told last is where it was then. It numbers its batches as it reads them, so it is known of every
number since then which batch it is, and of every batch whether it was learned from: another reads on from
there, and sends what was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from akkordeon.core.messages import Message
from akkordeon.core.plain_state import Applied, PlainState
from akkordeon.core.recovery.messages import SentinelLost
from akkordeon.core.recovery.reports import Learned
from akkordeon.core.reports import BatchCount
from akkordeon.engines.base import Engine
from akkordeon.session.attachment import Attachment

__all__ = ["LostSentinels"]

ASK_AGAIN_S, QUESTIONS = 0.5, 16
"""A gate that is away does not hear a question; so it is put again after so long, and so often, not counting
those while it is known to be away."""


@dataclass
class _Asked:
    attachment: Attachment
    left: int = QUESTIONS


class LostSentinels:
    """Finds out where lost sentinels were. Its methods are called as reports are heard, one at a time.

    Args:
        engine: knows the time.
        send: carries a message to an actor.
        end: is told that a sentinel has ended, and where its batches went.
        is_away: whether an actor is gone, and comes back.
    """

    def __init__(
        self,
        engine: Engine,
        send: Callable[[str, Message], None],
        end: Callable[[Attachment, BatchCount | None], None],
        is_away: Callable[[str], bool],
    ) -> None:
        self._engine = engine
        self._send = send
        self._end = end
        self._is_away = is_away
        self._asked: dict[str, _Asked] = {}  # by address

    def lost(self, attachment: Attachment) -> None:
        """A sentinel that trains is gone; it ends when it is known where it was."""
        if attachment.address not in self._asked:
            self._asked[attachment.address] = _Asked(attachment)
            self._ask(attachment.address)

    def learned(self, record: Learned) -> None:
        """The gates have answered."""
        asked = self._asked.pop(record.sentinel, None)
        if asked is None:
            return
        attachment, batches = asked.attachment, None
        if attachment._saved is not None:
            attachment._state, batches = _after(attachment, attachment._saved, record.applied)
        self._end(attachment, batches)

    def give_up(self, row: tuple[str, ...] | None = None) -> None:
        """Nobody will answer any more; with a ``row`` none of its gates."""
        for address, asked in list(self._asked.items()):
            if row in (None, asked.attachment.row):
                del self._asked[address]
                self._end(asked.attachment, None)

    def ask_again(self, gate: str) -> None:
        """A gate was made anew, and has heard no question."""
        for asked in self._asked.values():
            if gate in asked.attachment.row:
                self._question(asked)

    def _question(self, asked: _Asked) -> None:
        attachment = asked.attachment
        self._send(attachment.row[-1], SentinelLost(attachment.address))

    def _ask(self, address: str) -> None:
        asked = self._asked.get(address)
        if asked is None:
            return
        if not asked.left:
            self._end(self._asked.pop(address).attachment, None)
            return
        if not any(map(self._is_away, asked.attachment.row)):
            asked.left -= 1
        self._question(asked)
        self._engine.after(ASK_AGAIN_S, partial(self._ask, address))


def _after(attachment: Attachment, told: PlainState, learned: Applied) -> tuple[dict[str, Any], BatchCount]:
    """What another goes on from after these batches, and where the batches went of the one that is lost."""
    number = told["number"]
    known = learned.renumbered(told["again"], number).union(Applied.from_plain(told["known"]))
    start = {**told, "known": known.as_plain()}
    sent, trained, refused, _ = told["batches"]
    since = known.count(number)
    sent, trained = max(sent + since, attachment._batches.sent), trained + since
    return start, BatchCount(sent, trained, refused, sent - trained - refused)
