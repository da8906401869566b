"""Entries of a Redis stream, as one consumer of a group reads them.

    new entries ──▶ given to a consumer: pending ──▶ acknowledged
                    ▲                           │
                    └── given again at a start ─┘

The server knows what each consumer was given and has not acknowledged. That is older than all that nobody was
given yet, so entries are given in the order of their ids.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from akkordeon.core.checks import require_above, require_whole
from akkordeon.core.errors import DataError
from akkordeon.core.plain_state import PlainState
from akkordeon.data.streams.records import parsed_value
from akkordeon.data.streams.redis_server import RedisServer

__all__ = ["RedisStream"]

BEGINNING = "0-0"
NEW = ">"

ANSWER_S = 10.0
"""How long an answer may take, beyond what was to be waited for."""

AT_ONCE = 1000
"""Entries that are acknowledged, or taken over, in one command."""


class RedisStream:
    """A source of records, one for each entry of a Redis stream. At its end it waits for more.

    What was not acknowledged comes again, to whoever reads next under the same name: a process that was
    killed, or another in its place, goes on where it was. A record has the fields of its entry, numbers as
    floats, and the entry's ``id`` if it has no field of that name.

    Args:
        url: of the server, as in ``redis://localhost:6379/0`` or ``unix:///run/redis.sock``.
        stream: its key.
        group: of consumers; made where it is not there, to read the stream from its beginning.
        consumer: the name under which this one reads, and no other at the same time.
        count: entries that are fetched at once.
        claim_after_s: at the start take over what other consumers were given so many seconds ago and have not
            acknowledged; nothing if not given.
        patience_s: seconds to wait in all, before a server that is out of reach is given up.
        poll_s: seconds to wait for new entries, before the reader looks whether there is something else.
        follow: wait for more at the end; if not, the source ends there.

    Raises:
        RecipeError: the client is not installed, the url is none of Redis, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        *,
        group: str = "akkordeon",
        consumer: str = "learner",
        count: int = 1,
        claim_after_s: float | None = None,
        patience_s: float = 30.0,
        poll_s: float = 0.2,
        follow: bool = True,
    ) -> None:
        require_whole("count", count)
        require_above("claim_after_s", claim_after_s, optional=True)
        require_above("patience_s", patience_s)
        require_above("poll_s", poll_s)
        self._server = RedisServer(url, self._join, answer_s=ANSWER_S + poll_s, patience_s=patience_s)
        self._stream, self._group, self._consumer = stream, group, consumer
        self._count = count
        self._claim_after_s = claim_after_s
        self._poll_s = poll_s
        self._follow = follow
        self._has_begun = False
        self._goes_on_after: str | None = None  # where it does not start anew
        self._last = BEGINNING  # of those that were given since the start
        self._looks_back = True  # for pending entries after that one
        self._place = BEGINNING  # where a group would have to begin
        self._done: list[str] = []  # to be acknowledged

    def __getstate__(self) -> dict[str, Any]:
        """In another process it starts anew."""
        return vars(self) | {"_has_begun": False, "_goes_on_after": None}

    def close(self) -> None:
        """Have the source end after the entries that are there; from any thread."""
        self._server.closed.set()

    def __str__(self) -> str:
        return f"the stream {self._stream!r} at {self._server}"

    def _join(self, client: Any) -> None:
        from redis.exceptions import ResponseError

        if not client.exists(self._stream):
            raise DataError(
                f"there is no stream {self._stream!r} at {self._server}; the first entry makes it"
            )
        try:
            client.xgroup_create(self._stream, self._group, self._place)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # it is there
                raise
        self._looks_back = True

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """Records; None where there is nothing for now."""
        self._start()
        while True:
            is_last = not self._follow or self._server.closed.is_set()
            entries = self._server.ask(partial(self._entries, is_last=is_last))
            for entry, fields in entries:
                self._last = self._place = entry.decode()
                if fields:
                    yield {"id": self._last} | {name.decode(): _value(text) for name, text in fields.items()}
                else:
                    self._leave_out(self._last)
            if not entries:
                if is_last:
                    return
                yield None

    def _start(self) -> None:
        """Begin with all that is pending, what others have left too, or go on."""
        after, self._goes_on_after = self._goes_on_after, None
        claims_from = BEGINNING if after is None and self._claim_after_s is not None else None
        while claims_from is not None:
            claims_from = self._server.ask(partial(self._claim, entry=claims_from))
        self._last, self._looks_back, self._has_begun = after or BEGINNING, True, True

    def _claim(self, client: Any, entry: str) -> str | None:
        """Some of what others have left, from an entry on; where that goes on."""
        idle_ms = int((self._claim_after_s or 0) * 1000)
        found = client.xautoclaim(self._stream, self._group, self._consumer, idle_ms, entry, AT_ONCE)
        left_at: str = found[0].decode()
        return None if left_at == BEGINNING else left_at

    def _entries(self, client: Any, is_last: bool) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Some that are pending and were not given since the start, else new ones; none if there are none."""
        self._settle(client)
        if self._looks_back:
            pending = self._read(client, self._last)
            if pending:
                return pending
            self._looks_back = False
        return self._read(client, NEW, None if is_last else max(1, int(self._poll_s * 1000)))

    def _read(self, client: Any, after: str, block_ms: int | None = None) -> list[Any]:
        found = client.xreadgroup(self._group, self._consumer, {self._stream: after}, self._count, block_ms)
        return found[0][1] if found else []

    def _leave_out(self, entry: str) -> None:
        logging.getLogger(__name__).warning(
            "entry %s of %s was deleted before anybody had acknowledged it, and is left out", entry, self
        )
        self.acknowledge([{"id": entry}])

    # ── its place ────────────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> PlainState:
        """Which entry it gave last."""
        return {"id": self._place}

    def load_state_dict(self, state: PlainState) -> None:
        """Go on after that entry; in another process with all that is pending, which may be older."""
        self._place = state["id"]
        if self._has_begun:
            self._goes_on_after = self._place

    def acknowledge(self, positions: Sequence[PlainState]) -> None:
        """Those entries need not be given again; a server out of reach is told before it is read from."""
        self._done += [position["id"] for position in positions]
        with suppress(DataError):
            self._server.ask(self._settle, patience_s=0)

    def _settle(self, client: Any) -> None:
        while self._done:
            some = self._done[:AT_ONCE]
            client.xack(self._stream, self._group, *some)
            del self._done[: len(some)]  # there may be more by now


def _value(text: bytes) -> Any:
    """A number, a string, or bytes that are neither."""
    try:
        return parsed_value(text.decode())
    except UnicodeDecodeError:
        return text
