"""What a user holds of a gate that is at work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["LiveGate"]


class Operator(Protocol):
    """Carries out what is asked of a gate."""

    def change(self, address: str, settings: dict[str, Any], timeout: float | None) -> None:
        """Have a gate learn with other settings, and wait until it does."""


@dataclass(frozen=True)
class LiveGate:
    """A gate of a running session, to be changed between two batches.

    Attributes:
        address: as in reports.
    """

    address: str
    _operator: Operator

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address}>"

    def set(self, *, timeout: float | None = None, **settings: Any) -> None:
        """Have the gate learn with other settings from its next update on; all of them, or none.

        Batches in flight go on: their gradients are taken on the weights of their forward.

        Args:
            timeout: seconds to wait for the gate; None waits as long as it takes.
            settings: ``lr``, ``weight_decay`` and other options of the optimizer, for all its groups of
                parameters; ``optimizer``, ``staleness`` and ``clip_norm`` as in :class:`akkordeon.Gate`, of
                which another optimizer and another rule begin as new; ``frozen``, True to pass gradients
                through and leave the weights as they are, and False to learn again; ``reset_optimizer``,
                True to forget what the optimizer knows of past gradients; ``boost``, as in (5.0, 100), to
                multiply its learning rates by 5 in the next 100 updates.

        Raises:
            RecipeError: there is no such setting, it cannot have this value, or the learning rate is set by
                a scheduler.
            SessionError: it is called from within an actor.
            WaitTimeoutError: the gate has not answered by then, and may change yet.
        """
        self._operator.change(self.address, settings, timeout)
