"""One interpreter of effects: an actor handles a message, and what it yields is carried out as it yields it.

Threads, the simulator, a replay and a stopwatch differ in what a ``Send`` or a ``Report`` leads to, not in
how an actor stops or fails. Each derives from :class:`Interpreter` and says what its four effects do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from akkordeon.core.actor import Actor, After, Report, Send, Stop
from akkordeon.core.errors import raised_in_actor
from akkordeon.core.messages import Batch, Message, batch_of, describe
from akkordeon.core.reports import ActorFailed
from akkordeon.engines.base import Listener, Load
from akkordeon.engines.mailbox import Mailbox

__all__ = ["Cell", "Interpreter"]


class HasActor(Protocol):
    """Whatever an engine keeps of an actor."""

    @property
    def actor(self) -> Actor:
        """The actor itself."""


AnyCell = TypeVar("AnyCell", bound=HasActor)


class Cell:
    """An actor, its mailbox, and where it stands.

    Attributes:
        scheduled: whether it waits for a worker, or is at one.
        handled: messages it has handled.
        busy_s: seconds it has spent on them.
    """

    __slots__ = ("actor", "alive", "busy_s", "handled", "mailbox", "scheduled")

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.mailbox = Mailbox(fair=actor.shares_fairly)
        self.alive = True
        self.scheduled = False
        self.handled = 0
        self.busy_s = 0.0

    def load(self) -> Load:
        """How busy the actor is."""
        return Load(len(self.mailbox), self.handled, self.busy_s)


class Interpreter(ABC, Generic[AnyCell]):
    """Has actors handle messages.

    Attributes:
        recorder: hears of every message that is handled.
    """

    recorder: Listener | None = None

    @abstractmethod
    def _send(self, sender: AnyCell, to: str, message: Message) -> None:
        """Carry out a ``Send``."""

    @abstractmethod
    def _report(self, record: Any) -> None:
        """Carry out a ``Report``."""

    @abstractmethod
    def _after(self, cell: AnyCell, seconds: float, message: Message) -> None:
        """Carry out an ``After``."""

    @abstractmethod
    def _remove(self, cell: AnyCell) -> None:
        """Carry out a ``Stop``; or the actor has failed, which ends it too."""

    def _handle(self, cell: AnyCell, message: Message, now_s: float) -> None:
        """Have an actor handle a message, and carry out what it yields as it yields it."""
        actor, recorder = cell.actor, self.recorder
        try:
            effects = (
                actor.receive(message, now_s) if recorder is None else recorder.listen(actor, message, now_s)
            )
            for effect in effects:
                kind = type(effect)  # for each of many messages, and much quicker than isinstance
                if kind is Send:
                    self._send(cell, effect.to, effect.message)  # type: ignore[union-attr]
                elif kind is Report:
                    self._report(effect.record)  # type: ignore[union-attr]
                elif kind is After:
                    self._after(cell, effect.seconds, effect.message)  # type: ignore[union-attr]
                elif kind is Stop:
                    self._remove(cell)
                    break
        except BaseException as error:  # SystemExit too: a worker that died of it would leave all waiting
            self._remove(cell)
            self._fail(cell, describe(message), raised_in_actor(error), batch_of(message))
            self._say_last_words(cell)

    def _say_last_words(self, cell: AnyCell) -> None:
        """Carry out what an actor leaves behind that will handle nothing more."""
        try:
            for effect in cell.actor.last_words():
                if isinstance(effect, Send):
                    self._send(cell, effect.to, effect.message)
                elif isinstance(effect, Report):
                    self._report(effect.record)
        except BaseException as error:
            self._fail(cell, "its last words", raised_in_actor(error))

    def _fail(self, cell: AnyCell, doing: str, error: BaseException, batch: Batch | None = None) -> None:
        """An actor raised this; it is removed already."""
        self._report(ActorFailed(cell.actor.address, doing, error, batch))
