"""The sentinels of a session, by name and by address."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from typing import Any

from akkordeon.core.addresses import free_name, sentinel_address, sentinel_of
from akkordeon.core.errors import NameTakenError, NoSuchSentinelError, RecipeError, SessionError
from akkordeon.core.reports import BatchCount, BestKept
from akkordeon.sentinels.recipes import Sentinel, Training
from akkordeon.session.attachment import Attachment, ParentSession
from akkordeon.session.epochs_read import EpochsRead

__all__ = ["Registry"]

ENDED_MAX = 1000
"""Sentinels that have ended and are kept under their names, so that a service may run for years."""


class Registry:
    """Who is attached to a session. Its methods may be called from any thread.

    Args:
        max_in_flight: batches a gate holds at most, of all sentinels together.

    Attributes:
        by_address: those that will still report, by address.
        epochs_read: how often their data was read.
        batches_of_ended: where the batches went of all that have ended, those forgotten among them.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.by_address: dict[str, Attachment] = {}
        self._by_name: dict[str, Attachment] = {}
        self._ended: dict[str, Attachment] = {}  # by name, who ended first first
        self._names_at_work: dict[str, None] = {}
        self._keepers: dict[str, Attachment] = {}  # by address
        self._in_flight: Counter[tuple[str, ...]] = Counter()  # batches that there may be, by row
        self._numbers: dict[str, int] = {}  # how many sentinels of each name there were
        self._number_of_forgotten = 0  # the largest of a name that is not in there any more
        self.epochs_read = EpochsRead()
        self.batches_of_ended = BatchCount()
        self._max_in_flight = max_in_flight
        self._lock = threading.Lock()

    def register(
        self, sentinel: Sentinel, row: tuple[str, ...], session: ParentSession, number: int | None = None
    ) -> Attachment:
        """Give a sentinel its name; of earlier ones of that name only their users keep what they did.

        Args:
            sentinel: the recipe.
            row: whom it talks to, head first.
            session: where it is attached.
            number: among those of its name, where it is known elsewhere which it is.

        Raises:
            NameTakenError: a sentinel of that name is at work.
            RecipeError: it wants more batches in flight than there may be.
        """
        with self._lock:
            name = sentinel.name or free_name(str(sentinel.role), self._names_at_work)
            attachment = Attachment(name, sentinel.role, "", sentinel, row, session)
            self._enter(attachment, number)
            return attachment

    def restore(self, attachment: Attachment, number: int | None = None) -> None:
        """Have a sentinel that has ended be at work again, under its name and another address.

        Args:
            attachment: of the sentinel.
            number: as of :meth:`register`.

        Raises:
            NameTakenError: another of its name is at work.
            RecipeError: there is no room for its batches any more.
        """
        with self._lock:
            self._enter(attachment, number)
            self.batches_of_ended -= attachment._batches

    def _enter(self, attachment: Attachment, number: int | None) -> None:
        """Have a sentinel be at work."""
        name = attachment.name
        if name in self._names_at_work:
            raise NameTakenError(f"a sentinel {name!r} is at work already; give this one another name")
        self._take_room(name, attachment.row, attachment.recipe)
        if number is None:
            number = self._numbers.get(name, self._number_of_forgotten) + 1
        self._numbers[name] = number
        attachment.address = sentinel_address(name, number)
        self._by_name.pop(name, None)
        self._ended.pop(name, None)
        self._by_name[name] = self.by_address[attachment.address] = attachment
        self._names_at_work[name] = None
        if attachment.role.keeps:
            self._keepers[attachment.address] = attachment
        self._forget_earliest()

    @property
    def attachments(self) -> list[Attachment]:
        """Of every name the latest; of those that have ended the last 1000, and whoever is of use beyond."""
        return list(self._by_name.values())

    def _forget_earliest(self) -> None:
        """Forget those that ended long ago and whom nobody will ask for."""
        surplus = len(self._ended) - ENDED_MAX
        for attachment in list(itertools.islice(self._ended.values(), max(0, surplus))):
            if not _is_of_use(attachment):  # a name that comes again begins above, so no address comes twice
                del self._ended[attachment.name], self._by_name[attachment.name]
                number = self._numbers.pop(attachment.name, 0)
                self._number_of_forgotten = max(self._number_of_forgotten, number)

    def _take_room(self, name: str, row: tuple[str, ...], sentinel: Sentinel) -> None:
        """Refuse a trainer whose batches the gates would refuse one by one."""
        if not isinstance(sentinel, Training):
            return
        in_flight = self._in_flight[row] + sentinel.in_flight
        if in_flight > self._max_in_flight:
            raise RecipeError(
                f"with {name!r} up to {in_flight} batches would be in flight, but the network allows "
                f"{self._max_in_flight}: give it a smaller in_flight or raise Network(max_in_flight=…)"
            )
        self._in_flight[row] = in_flight

    def named(self, name: str) -> Attachment | None:
        """The sentinel of that name, at work or ended."""
        return self._by_name.get(name)

    def owner(self, address: str) -> Attachment | None:
        """The sentinel that an actor is, or reads for; None if it has ended, or is none."""
        return self.by_address.get(sentinel_of(address))

    def get(self, name: str) -> Attachment:
        """The latest sentinel of that name.

        Raises:
            NoSuchSentinelError: there was none.
        """
        found = self.named(name)
        if found is None:
            known = ", ".join(sorted({repr(a.name) for a in self.attachments})) or "none"
            raise NoSuchSentinelError(f"no sentinel {name!r} here; attached were: {known}")
        return found

    def best(self, name: str | None) -> BestKept | None:
        """The best round of the sentinel of that name, or of the only one that keeps its best.

        Raises:
            NoSuchSentinelError: none of that name was ever attached.
            SessionError: several keep their best, and none was named.
        """
        if name is not None:
            return self.get(name).best
        with_best = [a for a in self.attachments if a.best is not None]
        if len(with_best) > 1:
            names = ", ".join(repr(a.name) for a in with_best)
            raise SessionError(f"{names} keep their best, each its own; say whose: session.best_module(NAME)")
        return with_best[0].best if with_best else None

    def at_work(self, row: tuple[str, ...] | None = None) -> list[Attachment]:
        """Those that have not ended; with a ``row`` those that talk to it."""
        return [a for a in list(self.by_address.values()) if row in (None, a.row)]

    def rewire(self, attachment: Attachment, row: tuple[str, ...]) -> None:
        """A sentinel talks to another row."""
        with self._lock:
            if isinstance(attachment.recipe, Training) and attachment.address in self.by_address:
                self._in_flight[attachment.row] -= attachment.recipe.in_flight
                self._in_flight[row] += attachment.recipe.in_flight
            attachment.row = row

    def keepers(self) -> list[Attachment]:
        """Those at work that take checkpoints."""
        return list(self._keepers.values())

    def withdraw(self, attachment: Attachment) -> None:
        """A sentinel that was registered did not come."""
        self.mark_ended(attachment)
        self.remove(attachment)

    def remove(self, attachment: Attachment) -> None:
        """Take a sentinel off the list."""
        with self._lock:
            for by_name in (self._by_name, self._ended):
                if by_name.get(attachment.name) is attachment:
                    del by_name[attachment.name]

    def mark_ended(self, attachment: Attachment, batches: BatchCount | None = None) -> None:
        """A sentinel will not report its end; ``batches``: where they went, if that is known."""
        self.end(attachment, batches, cut_short=True)

    def end(
        self, attachment: Attachment, batches: BatchCount | None, result: Any = None, cut_short: bool = False
    ) -> None:
        """A sentinel has ended; see :class:`SentinelEnded`."""
        with self._lock:
            if self.by_address.pop(attachment.address, None) is None:
                return
            del self._names_at_work[attachment.name]
            self._keepers.pop(attachment.address, None)
            if isinstance(attachment.recipe, Training):
                self._in_flight[attachment.row] -= attachment.recipe.in_flight
                self._in_flight += Counter()  # those of rows that nobody talks to any more go
            if self._by_name.get(attachment.name) is attachment:
                self._ended[attachment.name] = attachment
        attachment._end(batches, result, cut_short)
        self.batches_of_ended += attachment._batches

    def move(self, attachment: Attachment, number: int) -> None:
        """A sentinel at work is made anew; ``number``: among those of its name."""
        with self._lock:
            self.by_address.pop(attachment.address, None)
            kept = self._keepers.pop(attachment.address, None)
            self._numbers[attachment.name] = number
            attachment.address = sentinel_address(attachment.name, number)
            self.by_address[attachment.address] = attachment
            if kept is not None:
                self._keepers[attachment.address] = kept


def _is_of_use(attachment: Attachment) -> bool:
    """Whether it keeps its best weights, or failed and nobody was told."""
    return attachment.best is not None or not (attachment.error is None or attachment._error_is_known)
