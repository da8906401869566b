"""What a user holds of a gate that is at work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.gate import Gate

__all__ = ["LiveGate", "Put"]

Put = tuple[str | None, ...]
"""What is to be in the place of a gate: addresses, and None for the gate that comes."""


class Operator(Protocol):
    """Carries out what is asked of a gate."""

    def change(self, address: str, settings: dict[str, Any], timeout: float | None) -> None:
        """Have a gate learn with other settings, and wait until it does."""

    def rearrange(self, address: str, gate: Gate | None, put: Put, timeout: float | None) -> str | None:
        """Put something in the place of a gate; the address of the new gate."""


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

    def insert_before(self, gate: Gate, *, timeout: float | None = None) -> LiveGate:
        """Have another gate work on what comes to this one, from the next batch on.

        What is under way comes back first, and nothing is sent meanwhile. The new gate has an address of its
        own; all others keep theirs, and what they have learned.

        Args:
            gate: its recipe; it begins with the weights of its module.
            timeout: seconds to wait for what is under way; None waits as long as it takes.

        Returns:
            The new gate.

        Raises:
            RecipeError: this gate is gone, the recipe cannot be made, or the network was cut from a module
                whose forward its gates run.
            SharedParameterError: a parameter belongs to a gate of the row, too.
            SessionError: it is called from within an actor, or while the row is being changed.
            WaitTimeoutError: not all has come back by then; the row is what it was.
        """
        return self._put(gate, (None, self.address), timeout)

    def insert_after(self, gate: Gate, *, timeout: float | None = None) -> LiveGate:
        """Have another gate work on what this one gives; see :meth:`insert_before`."""
        return self._put(gate, (self.address, None), timeout)

    def replace(self, gate: Gate, *, timeout: float | None = None) -> LiveGate:
        """Have another gate work in the place of this one, which ends; see :meth:`insert_before`."""
        return self._put(gate, (None,), timeout)

    def remove(self, *, timeout: float | None = None) -> None:
        """Have the row go on without this gate, which ends; see :meth:`insert_before`."""
        self._operator.rearrange(self.address, None, (), timeout)

    def _put(self, gate: Gate, put: Put, timeout: float | None) -> LiveGate:
        if not isinstance(gate, Gate):
            raise RecipeError(f"a row is made of gates, got {type(gate).__name__}; wrap it: Gate(…)")
        new = self._operator.rearrange(self.address, gate, put, timeout)
        assert new is not None, "one has come"
        return LiveGate(new, self._operator)
