"""What a page shows: a session at work, or whatever else can be looked at."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from akkordeon.core.reports import ActorFailed, ActorLost, EpochDone, RoundDone, SentinelEnded
from akkordeon.session.page.chronicle import Chronicle
from akkordeon.session.page.history import History
from akkordeon.session.page.picture import (
    edges_of,
    gates_of,
    hosts_of,
    process_of,
    sentinel_elsewhere,
    sentinels_of,
    weights_bytes,
)

if TYPE_CHECKING:
    from akkordeon.session.session import Session

__all__ = ["Watched", "WatchedSession"]

PATIENCE_S = 0.2
"""How long a look waits for actors that are in the middle of something."""

OF_SENTINELS = ActorFailed | ActorLost | EpochDone | RoundDone | SentinelEnded
"""What is reported when sentinels may have come or gone."""

NOT_ASKED = "gates are not asked how they are, so that this run can be repeated to the bit"


class Watched(Protocol):
    """Something to look at.

    Attributes:
        history: what has happened so far.
    """

    history: History

    def look(self) -> dict[str, Any]:
        """How it is now, as plain data; called by one thread at a time.

        Raises:
            AkkordeonError: that cannot be had now.
        """


class WatchedSession:
    """A session, and its curves and its log as it tells of what happens.

    Where a run can be repeated its gates are not asked, as that would change it.

    Args:
        session: at work.
        title: what it is called.

    Attributes:
        history: curves and log.
    """

    def __init__(self, session: Session, title: str) -> None:
        self._session = session
        self._title = title
        self._asks = not session._engine.is_repeatable
        self._sizes: dict[str, int] = {}
        self._sizes_of: tuple[str, ...] = ()  # the row that they are of
        self._events: set[str] = set()  # that the network has told of
        self._told: dict[str, int] = {}  # epochs or rounds of sentinels of other sessions, by address
        attachments = session.attachments
        self.history = History(max((a.seconds for a in attachments), default=0.0))
        self._chronicle = Chronicle(self.history)
        self._chronicle.before(attachments)
        self._is_closed = False
        self._writing = threading.Lock()  # held by whoever writes into the chronicle

    def close(self) -> None:
        """Write down nothing more."""
        self._is_closed = True

    def tell(self, record: Any) -> None:
        """The session has reported this."""
        if self._is_closed:
            return
        with self._writing:
            if isinstance(record, OF_SENTINELS):
                self._chronicle.see(self._session.attachments)
            self._chronicle.tell(record)

    def look(self) -> dict[str, Any]:
        """How the session is; see :class:`Watched`."""
        session = self._session
        row = session._topology.row
        with self._writing:
            attachments = session.attachments
            self._chronicle.see(attachments)
        status = session.status(PATIENCE_S) if self._asks else session._probes.known(attachments)
        picture: dict[str, Any] = {
            "title": self._title,
            "note": None if self._asks else NOT_ASKED,
            "failure": None if session._error is None else str(session._error),
            "seconds": round(self.history.seconds, 3),
            "now_s": status.now_s,
            "row": list(row),
            "gates": gates_of(row, status, self._sizes_for(row)),
            "edges": edges_of(row, status),
            "sentinels": sentinels_of(attachments, status),
            "hosts": hosts_of(session._engine.locations()),
            "process": process_of(),
        }
        for address, settings in self._settings_of(row).items():
            picture["gates"][address]["settings"] = settings
        self._look_elsewhere(picture)
        return picture

    def _settings_of(self, row: tuple[str, ...]) -> dict[str, dict[str, str]]:
        """With what gates of the row were told to learn; of others it is forgotten."""
        with self._writing:
            told = self._chronicle.settings
            self._chronicle.settings = {address: told[address] for address in row if address in told}
            return dict(self._chronicle.settings)

    def _sizes_for(self, row: tuple[str, ...]) -> dict[str, int]:
        if row != self._sizes_of:
            self._sizes, self._sizes_of = weights_bytes(self._session.network, row), row
        return self._sizes

    def _look_elsewhere(self, picture: dict[str, Any]) -> None:
        """Add what a network that outlives its sessions knows of the others."""
        network = self._session._engine.network_status()
        if network is None:
            return
        told: dict[str, int] = {}
        for entry in network.sentinels:
            if entry.answers or entry.name in picture["sentinels"]:
                continue
            plain = picture["sentinels"][entry.name] = sentinel_elsewhere(entry)
            told[entry.address] = plain["rounds"]
            if entry.last is not None and self._told.get(entry.address) != plain["rounds"]:
                with self._writing:
                    self._chronicle.tell(entry.last)
        self._told = told
        for event in network.events:
            if event not in self._events:
                self.history.note("noted", "the network", event)
        self._events = set(network.events)
