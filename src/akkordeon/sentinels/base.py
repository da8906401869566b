"""What sentinels of every role have: a reader, a window of numbered batches, and answers to questions."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

from akkordeon.core.actor import Actor, Effect, Report, Send, Stop
from akkordeon.core.checkpoint_messages import GoOn, Locate, Located
from akkordeon.core.messages import Batch, Close, CutId, EpochEnd, Item, Message, Probe
from akkordeon.core.plain_state import PlainState
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.recovery.reports import SentinelSaved
from akkordeon.core.reports import BatchCount, MessageRefused, SentinelEnded, SentinelStatus
from akkordeon.core.streams.messages import Event
from akkordeon.core.surgery.messages import Pause, Resume
from akkordeon.core.surgery.reports import AtRest
from akkordeon.core.well_formed import malformed
from akkordeon.sentinels.roles import Role

__all__ = ["START", "Handler", "SentinelActor"]

Handler = Callable[[Any, float], Iterator[Effect]]
"""What a sentinel does with a message; the second argument is the time."""

Flight = TypeVar("Flight")

PAUSE = "pause"
"""Who has a sentinel rest while the row is changed."""

ASKERS_MAX = 64
"""So many may have a sentinel rest at once."""

START = ""
"""Who has a sentinel rest that goes on from a start."""


class SentinelActor(Actor, Generic[Flight]):
    """A sentinel at work. When it asks its reader for more and what it sends is for its role to say.

    Args:
        address: its own.
        name: what reports call it.
        row: addresses of the gates, head first.
        reader: address of its reader.
        role: what it is for.
        in_flight: how many of its batches may be under way at once.
        saves: it tells now and then where it is.
    """

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        role: Role,
        in_flight: int,
        saves: bool = False,
    ) -> None:
        self.address = address
        self.name = name
        self.batches = BatchCount()
        self._row = row
        self._reader = reader
        self._role = role
        self._in_flight = in_flight
        self._saves = saves
        self._waiting: deque[Event] = deque()
        self._flights: dict[Batch, Flight] = {}
        self._numbers = 0
        self._rounds = 0  # that are over; of one that trains, epochs
        self._cut: CutId | None = None  # that it has asked for, and not released
        self._rest: dict[str, bool] = {}  # who wants it to rest, and whether they know that it does
        self._is_pausing = False  # and is to say when nothing is under way
        self._handlers: dict[type, Handler] = {
            Item: self._read,
            EpochEnd: self._read,
            Locate: self._locate,
            GoOn: self._go_on_after_rest,
            Pause: self._pause,
            Resume: self._resume,
            Probe: self._probe,
            Close: self._close,
        }

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Handle one message; see the table of handlers."""
        handler = self._handlers.get(type(message))
        if handler is None:
            return self._refuse_message(
                f"a sentinel that is to {self._role} takes no {type(message).__name__}"
            )
        wrong = malformed(message)
        effects = handler(message, now_s) if wrong is None else self._refuse_message(wrong)
        return self._until_at_rest(effects) if self._is_pausing else effects

    def _refuse_message(self, reason: str) -> Iterator[Effect]:
        """Stay as it is, and say so."""
        yield Report(MessageRefused(self.name, reason))

    @abstractmethod
    def _send(self, now_s: float) -> Iterator[Effect]:
        """Send what may be sent of what was read, and see whether that was all."""

    @abstractmethod
    def _samples(self) -> tuple[int, int]:
        """How many came back: in all, and of the epoch or round under way."""

    @abstractmethod
    def _state(self, asked: Locate) -> PlainState:
        """What another like it could go on from."""

    def _save(self, **more: object) -> Iterator[Effect]:
        """Tell where it is, and more, if anybody wants to know."""
        if self._saves:
            yield Report(SentinelSaved(self.address, {**self._state(Locate(self.address)), **more}))

    @abstractmethod
    def _come_to_rest(self, now_s: float) -> Iterator[Effect]:
        """See whether nothing is under way any more, and :meth:`_tell_at_rest` then."""

    def _tell_at_rest(self, state: PlainState) -> Iterator[Effect]:
        """Tell whoever wants to know."""
        for asker, knows in self._rest.items():
            if not knows:
                self._rest[asker] = True
                yield Send(asker, Located(self.address, state))

    def _locate(self, message: Locate, now_s: float) -> Iterator[Effect]:
        if message.hold and len(self._rest) >= ASKERS_MAX and message.asker not in self._rest:
            yield from self._refuse_message(f"that it is to rest, which {ASKERS_MAX} want already")
        elif message.hold:
            self._rest[message.asker] = False
            yield from self._come_to_rest(now_s)
        else:
            yield Send(message.asker, Located(self.address, self._state(message), message.number))

    def _go_on_after_rest(self, message: GoOn, now_s: float) -> Iterator[Effect]:
        self._rest.pop(message.asker, None)
        self._rest.pop(START, None)
        if not self._rest:
            yield from self._begin_again(now_s)

    @property
    def _is_under_way(self) -> bool:
        """Whether gates have anything of it."""
        return bool(self._flights) or self._cut is not None

    def _pause(self, message: Pause, now_s: float) -> Iterator[Effect]:
        self._rest[PAUSE], self._is_pausing = True, True
        return iter(())

    def _until_at_rest(self, effects: Iterator[Effect]) -> Iterator[Effect]:
        """What comes of a message while it pauses, and then perhaps that it is at rest."""
        yield from effects
        if self._is_pausing and not self._is_under_way:
            self._is_pausing = False
            yield Report(AtRest(self.address))

    def _resume(self, message: Resume, now_s: float) -> Iterator[Effect]:
        """Go on; a row of other gates is one whose head was made anew, and where nothing is under way."""
        self._is_pausing = False
        if message.row != self._row:
            self._row = message.row
            yield from self._handlers[Restarted](Restarted(message.row[0]), now_s)
        if self._rest.pop(PAUSE, None) is not None and not self._rest:
            yield from self._begin_again(now_s)

    def _begin_again(self, now_s: float) -> Iterator[Effect]:
        """The rest is over."""
        yield from self._send(now_s)

    def _read(self, message: Event, now_s: float) -> Iterator[Effect]:
        self._waiting.append(message)
        yield from self._send(now_s)

    def _number(self, flight: Flight) -> Batch:
        """Give the next batch its identity, and keep what will be needed when it comes back."""
        batch = Batch(self.address, self._numbers)
        self._numbers += 1
        self._flights[batch] = flight
        return batch

    def _to_all(self, message: Message) -> Iterator[Effect]:
        for gate in self._row:
            yield Send(gate, message)

    def _say_end(self, result: Any = None, cut_short: bool = False) -> Iterator[Effect]:
        """The last that anybody hears of it and of its reader."""
        yield Send(self._reader, Close())
        state = self._state(Locate(self.address)) if self._role.has_place else None
        yield Report(SentinelEnded(self.address, self.batches, result, cut_short, state))

    def _close(self, message: Close, now_s: float) -> Iterator[Effect]:
        yield from self.last_words()
        yield Stop()

    def _probe(self, message: Probe, now_s: float) -> Iterator[Effect]:
        samples, of_epoch = self._samples()
        yield Report(
            SentinelStatus(
                probe=message.number,
                address=self.address,
                name=self.name,
                role=str(self._role),
                rounds=self._rounds,
                in_flight=len(self._flights),
                samples=samples,
                samples_of_epoch=of_epoch,
                batches=replace(self.batches),
            )
        )
