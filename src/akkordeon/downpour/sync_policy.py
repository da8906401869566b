"""The settings of the traffic between the gates of a replica and their shards."""

from __future__ import annotations

from dataclasses import dataclass

from akkordeon.core.checks import require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.downpour.compression import COMPRESSIONS

__all__ = ["SyncPolicy"]


@dataclass(frozen=True, kw_only=True)
class SyncPolicy:
    """When the gates of a replica push to their shards and fetch from them, and what they push.

    Args:
        push_every: steps between pushes.
        fetch_every: steps between fetches; with each push if None.
        wait: whether a forward waits for weights that are on their way.
        local_step: whether the gate's own optimizer makes a step with each gradient.
        differences: push how far the weights have come instead of the sum of gradients.
        compression: of pushes: None, ``"bf16"`` or ``"int8"``.
        fetch_compression: of what is fetched, likewise.

    Raises:
        RecipeError: a number out of range, or differences without local steps, which would be zero.
    """

    push_every: int = 1
    fetch_every: int | None = None
    wait: bool = False
    local_step: bool = True
    differences: bool = False
    compression: str | None = None
    fetch_compression: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        require_whole("push_every", self.push_every)
        require_whole("fetch_every", self.fetch_every, optional=True)
        for name in ("compression", "fetch_compression"):
            if getattr(self, name) not in COMPRESSIONS:
                raise RecipeError(f"{name} is None, 'bf16' or 'int8', got {getattr(self, name)!r}")
        if self.differences and not self.local_step:
            raise RecipeError(
                "without local steps the weights of a replica do not move, so there is no difference to "
                "push; use local_step=True, or push gradients"
            )
