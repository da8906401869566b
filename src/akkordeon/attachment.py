"""What a user holds of a sentinel that was attached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from akkordeon.errors import ActorFailedError
from akkordeon.messages import Detach, Message
from akkordeon.metrics import BatchCount, BatchRefused, EpochDone, RoundDone
from akkordeon.sentinel import Sentinel

__all__ = ["Attachment", "Host"]


class Host(Protocol):
    """What an attachment asks of its session."""

    def _wait(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        """Wait for a condition; raise ``what`` if it does not come."""

    def _send(self, to: str, message: Message) -> None:
        """Carry a message to an actor."""


@dataclass(eq=False)
class Attachment:
    """A sentinel that was attached: what it reported so far, and how to wait for it.

    Attributes:
        name: as in reports.
        row: whom it talks to, head first.
        role: ``train``, ``validate``, ``test`` or ``predict``.
        epochs: of a training sentinel, one record each.
        rounds: of a validation or test sentinel, one record each.
        batches: where its batches went; final once it has ended.
        error: why it failed, if it did.
    """

    name: str
    role: str
    address: str
    recipe: Sentinel
    row: tuple[str, ...]
    _session: Host
    epochs: list[EpochDone] = field(default_factory=list)
    rounds: list[RoundDone] = field(default_factory=list)
    refusals: list[BatchRefused] = field(default_factory=list)
    batches: BatchCount = field(default_factory=BatchCount)
    ended: bool = False
    error: ActorFailedError | None = None
    result: Any = None

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the sentinel has ended.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            ActorFailedError: it failed, or a gate did; the original error is its ``__cause__``.
            WaitTimeoutError: it has not ended by then; it goes on.
        """
        self._session._wait(lambda: self.ended, timeout, f"{self.name!r} has not ended")
        if self.error is not None:
            raise self.error
        return self

    def detach(self, drop: bool = False) -> None:
        """Have it send nothing new and end, if it has not; see :meth:`Session.detach`."""
        if not self.ended:
            self._session._send(self.address, Detach(drop))
