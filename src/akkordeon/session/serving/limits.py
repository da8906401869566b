"""How much a server does at once."""

from __future__ import annotations

from dataclasses import dataclass

from akkordeon.core.checks import require_seconds, require_whole
from akkordeon.core.errors import RecipeError

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a server does at once.

    Attributes:
        queue_max: requests that are read, wait or are computed; one more is told to come again.
        batch_max: rows after which a batch waits for no more requests.
        wait_ms: how long the first of a batch waits for others, in milliseconds.
        body_bytes_max: of a request.

    Raises:
        RecipeError: a number out of range.
    """

    queue_max: int = 128
    batch_max: int = 64
    wait_ms: float = 2.0
    body_bytes_max: int = 2**22

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        for what in ("queue_max", "batch_max", "body_bytes_max"):
            require_whole(what, getattr(self, what))
        require_seconds("wait_ms", self.wait_ms)
        if not 0 <= self.wait_ms <= 1000:
            raise RecipeError(f"wait_ms is from 0 to 1000, got {self.wait_ms!r}")
