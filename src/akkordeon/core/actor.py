"""An actor: an address, a mailbox, and one message at a time turned into effects.

``receive`` is a generator of effects; the engine carries each out as it is yielded. So a gate yields
the gradient for the gate before it and only then steps its optimizer: the other is already at work.
Carrying an effect out never throws into the generator. Nothing here knows a thread, a clock or a
socket: time comes in as ``now_s``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from akkordeon.core.messages import Message
from akkordeon.core.numerics.generator import GeneratorUse
from akkordeon.core.plain_state import StageState

__all__ = ["Actor", "After", "Effect", "Report", "Send", "Spawn", "Stop"]


class Send(NamedTuple):
    """Put ``message`` into the mailbox of the actor at address ``to``."""

    to: str
    message: Message


class After(NamedTuple):
    """Put ``message`` into my own mailbox in ``seconds``."""

    seconds: float
    message: Message


class Report(NamedTuple):
    """Hand ``record`` to whoever watches the session."""

    record: Any


class Stop(NamedTuple):
    """I am done: no further message will be handled."""


Effect = Send | After | Report | Stop


class Actor(ABC):
    """What an engine runs."""

    address: str
    may_block: bool = False
    """Whether ``receive`` may wait for the world outside (a stalled stream): engines give it a thread."""
    shares_fairly: bool = False
    """Whether sentinels take turns with the batches that they send it: engines see to that."""
    device: torch.device | None = None
    """Where its tensors are, if that is not the CPU; threads have a stream for each on a GPU."""
    generator_use: GeneratorUse = GeneratorUse.NONE
    """Of the process's random generator, in forwards and backwards: who may be at work at the same time."""

    @abstractmethod
    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Handle one message; an engine calls it for one message at a time."""

    def last_words(self) -> Iterator[Effect]:
        """What to leave behind, having failed or being told to end; the actor will handle nothing more."""
        return iter(())


@dataclass(frozen=True)
class Spawn:
    """What an engine needs to make one actor.

    Attributes:
        address: nobody else's.
        make: makes it, where it is to be.
        resources: what it needs, where that makes a difference.
        restore: makes it anew from a state, where whoever has it made sees to that when it is gone; an engine
            that brings actors back by itself leaves it alone.
    """

    address: str
    make: Callable[[], Actor]
    resources: Mapping[str, float] | None = None
    restore: Callable[[StageState], Actor] | None = None
