"""Sources that give a record again until they are told that it is done with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from akkordeon.core.plain_state import PlainState

__all__ = ["Acknowledging"]


@runtime_checkable
class Acknowledging(Protocol):
    """What a source has that wants to know what it need not give again, beside ``__iter__``.

    A record is known by the state that the source had right after giving it.
    """

    def state_dict(self) -> PlainState:
        """Where it is, after what it gave last; others for each record."""

    def load_state_dict(self, state: PlainState) -> None:
        """Go on from there."""

    def acknowledge(self, positions: Sequence[PlainState]) -> None:
        """The records after which it was there are done with."""
