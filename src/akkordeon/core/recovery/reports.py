"""The record of what a gate would be made anew from; those who look on do not see it."""

from __future__ import annotations

from dataclasses import dataclass

from akkordeon.core.plain_state import StageState

__all__ = ["StageSaved"]


@dataclass(frozen=True, slots=True)
class StageSaved:
    """A snapshot of a gate or shard, for whoever would have it made anew."""

    address: str
    state: StageState
