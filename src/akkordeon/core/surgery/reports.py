"""The records of changes of a row at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["AtRest", "Changed", "Rewired", "RowChanged"]


@dataclass(frozen=True, slots=True)
class Changed:
    """A gate was told to learn with other settings.

    Attributes:
        address: of the gate.
        settings: by name.
        version: of its weights then.
        error: why it goes on with those it had, if it does.
        number: of the message that said so.
    """

    address: str
    settings: Mapping[str, Any]
    version: int
    error: Exception | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class AtRest:
    """A sentinel that was told to pause has nothing under way."""

    address: str


@dataclass(frozen=True, slots=True)
class Rewired:
    """A gate knows its place in another row."""

    address: str


@dataclass(frozen=True, slots=True)
class RowChanged:
    """Gates have come, or gone, or both; told by the session.

    Attributes:
        row: addresses of the gates, head first.
        came: those of new gates.
        left: those of gates that are no more.
    """

    row: tuple[str, ...]
    came: tuple[str, ...]
    left: tuple[str, ...]
