"""What every engine offers, and what it promises.

- Delivery: from one actor to another every message arrives, once, in the order sent, as long as both live.
- An actor handles one message at a time; its effects are carried out as they are yielded.
- An actor that raises is stopped; its last words are carried out; an :class:`ActorFailed` is reported.
- What cannot be delivered becomes an :class:`Undelivered` report; it never throws into the sender.
- After ``stop`` the process is as it was before ``start``: thread counts and random state.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch

from akkordeon.core.actor import Actor, Effect, Spawn
from akkordeon.core.checks import require_seconds
from akkordeon.core.messages import Message
from akkordeon.engines.timeline import Timeline

__all__ = ["Engine", "Listener", "Load", "ProcessState", "bounded"]


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an actor is.

    Attributes:
        queued: messages that wait in its mailbox.
        handled: messages it has handled.
        busy_s: seconds it has spent on them.
    """

    queued: int
    handled: int
    busy_s: float


class Listener(Protocol):
    """Somebody who hears of every message that is handled, as a recorder does."""

    def listen(self, actor: Actor, message: Message, now_s: float) -> Iterator[Effect]:
        """Stands between engine and actor: called instead of ``actor.receive``, gives what that gives."""


class Engine(ABC):
    """Carries messages between actors.

    Attributes:
        recorder: hears of every message that is handled; set before :meth:`start`.
        timeline: what everybody did when, where that is to be kept; set before :meth:`start`.
        may_lose: an actor may be gone without last words.
    """

    recorder: Listener | None = None
    timeline: Timeline | None = None
    may_lose: bool = True

    @property
    def is_repeatable(self) -> bool:
        """Whether equal seeds give equal runs."""
        return False

    def check_row(self, row: Iterable[str]) -> None:  # noqa: B027 - most take any
        """Raise a ``RecipeError`` where no network with this row can be carried; before :meth:`start`."""

    @abstractmethod
    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Begin. ``on_report`` is called with every record reported, by one thread at a time."""

    @abstractmethod
    def spawn(self, spawn: Spawn, beside: str | None = None) -> None:
        """Make an actor and give it its address. What ``make`` raises, this raises.

        Args:
            spawn: what is needed to make it.
            beside: the actor that it belongs with, where there is a choice of places.
        """

    def respawn(self, spawn: Spawn, then: Callable[[Exception | None], None]) -> None:
        """Make an actor anew; where that takes long nobody waits for it.

        Args:
            spawn: what is needed to make it.
            then: is told why it could not be made, or None: as reports are told, one at a time.
        """
        self.meanwhile(partial(self.spawn, spawn), then)

    def meanwhile(self, do: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """Have something done, as :meth:`respawn` does it; ``then`` is told what it raised, or None."""
        failure = None
        try:
            do()
        except Exception as error:
            failure = error
        then(failure)

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """Make the actors of a network, which belong together."""
        for spawn in spawns:
            self.spawn(spawn)

    def retire(self, addresses: Iterable[str]) -> None:  # noqa: B027 - most have nothing to do
        """These actors have been told to close and are not needed: end what was there for them alone."""

    @abstractmethod
    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox, from outside the actors; from any thread."""

    def send_all(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Put messages into mailboxes, before anybody handles one of them where that can be had."""
        for to, message in messages:
            self.send(to, message)

    @abstractmethod
    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done in so many seconds, unless the engine stops: as reports, one at a time."""

    def check_may_wait(self) -> None:  # noqa: B027 - most have no such threads
        """Raise a ``SessionError`` where a wait in this thread could never end."""

    @abstractmethod
    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Let the actors run until the condition holds, which is looked at after every report.

        Returns:
            Whether it holds; False only after ``timeout_s``.
        """

    @abstractmethod
    def loads(self) -> dict[str, Load]:
        """How busy each living actor is."""

    def locations(self) -> dict[str, tuple[str, int]]:
        """Address of the node and number of the process of every actor in a process of its own kind."""
        return {}

    def network_status(self) -> Any:
        """How a network is that outlives its sessions, with those of others; None where it is no such."""
        return None

    @abstractmethod
    def now_s(self) -> float:
        """The engine's time."""

    @abstractmethod
    def stop(self) -> None:
        """End all actors, wherever they are in their work, and leave the process as it was."""


class ProcessState:
    """What an engine may change in the user's process, and puts back.

    A process has one number of intra-op threads and one generator for each device. Of engines that run at
    the same time the latest puts back what it found; one that ends before a later one leaves that to it. So
    in the end all is as the first found it, and an engine that is never stopped keeps no other from it.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _at_work: ClassVar[list[ProcessState]] = []

    def __init__(self) -> None:
        with self._lock:
            self._put_back = _restoring()
            self._at_work.append(self)

    def restore(self) -> None:
        """Put back the number of intra-op threads and the state of the random generators."""
        with self._lock:
            place = self._at_work.index(self)
            del self._at_work[place]
            if place == len(self._at_work):
                self._put_back()
            else:
                self._at_work[place]._put_back = self._put_back


def _restoring() -> Callable[[], None]:
    """A function that makes the process what it is now. It does not wake up CUDA where that sleeps."""
    threads, random, first_seed = torch.get_num_threads(), torch.get_rng_state(), torch.initial_seed()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def restore() -> None:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
        if on_cuda is None:  # it would have begun with the seed of the CPU's generator
            torch.cuda.manual_seed_all(first_seed)
        else:
            torch.cuda.set_rng_state_all(on_cuda)

    return restore


def bounded(timeout_s: float | None) -> float | None:
    """A time that a thread can wait: there is a longest one, of some centuries.

    Raises:
        RecipeError: it is no number, which a thread would wait for without end, and without rest.
    """
    if timeout_s is None:
        return None
    require_seconds("a timeout", timeout_s)
    return min(timeout_s, threading.TIMEOUT_MAX)
