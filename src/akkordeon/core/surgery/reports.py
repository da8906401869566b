"""The records of changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Changed"]


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
