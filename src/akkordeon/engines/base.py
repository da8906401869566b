"""What every engine offers, and what it promises.

- Delivery: from one actor to another every message arrives, once, in the order sent, as long as both live.
- An actor handles one message at a time; its effects are carried out as they are yielded.
- An actor that raises is stopped; its last words are carried out; an :class:`ActorFailed` is reported.
- What cannot be delivered becomes an :class:`Undelivered` report; it never throws into the sender.
- After ``stop`` the process is as it was before ``start``: thread counts and random state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from akkordeon.actor import Actor, Effect
from akkordeon.messages import Message

__all__ = ["Engine", "Listener", "Load", "ProcessState"]


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
    """

    recorder: Listener | None = None

    @abstractmethod
    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Begin. ``on_report`` is called with every record reported, by one thread at a time."""

    @abstractmethod
    def spawn(
        self,
        address: str,
        make: Callable[[], Actor],
        resources: Mapping[str, float] | None = None,
        beside: str | None = None,
    ) -> None:
        """Make an actor and give it an address. What ``make`` raises, this raises.

        Args:
            address: nobody else's.
            make: makes it, where it is to be.
            resources: what it needs, where that makes a difference.
            beside: the actor that it belongs with, where there is a choice of places.
        """

    def spawn_all(
        self, actors: Iterable[tuple[str, Callable[[], Actor], Mapping[str, float] | None]]
    ) -> None:
        """Make the actors of a network: (address, make, resources), which belong together."""
        for address, make, resources in actors:
            self.spawn(address, make, resources)

    def retire(self, addresses: Iterable[str]) -> None:  # noqa: B027 - most have nothing to do
        """These actors have been told to close and are not needed: end what was there for them alone."""

    @abstractmethod
    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox, from outside the actors; from any thread."""

    @abstractmethod
    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Let the actors run until the condition holds, which is looked at after every report.

        Returns:
            Whether it holds; False only after ``timeout_s``.
        """

    @abstractmethod
    def loads(self) -> dict[str, Load]:
        """How busy each living actor is."""

    @abstractmethod
    def now_s(self) -> float:
        """The engine's time."""

    @abstractmethod
    def stop(self) -> None:
        """End all actors, wherever they are in their work, and leave the process as it was."""


class ProcessState:
    """What an engine may change in the user's process, and puts back."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._random = torch.get_rng_state()

    def restore(self) -> None:
        """Put back the number of intra-op threads and the state of the random generator."""
        torch.set_num_threads(self._threads)
        torch.set_rng_state(self._random)
