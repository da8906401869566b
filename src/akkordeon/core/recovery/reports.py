"""The records of what actors would be made anew from; those who look on do not see them."""

from __future__ import annotations

from dataclasses import dataclass

from akkordeon.core.plain_state import Applied, PlainState, StageState

__all__ = ["Learned", "RecoveryReport", "SentinelSaved", "StageSaved"]


@dataclass(frozen=True, slots=True)
class StageSaved:
    """A snapshot of a gate or shard, for whoever would have it made anew."""

    address: str
    state: StageState


@dataclass(frozen=True, slots=True)
class SentinelSaved:
    """Where a sentinel is, for whoever would have it go on if it were lost."""

    address: str
    state: PlainState


@dataclass(frozen=True, slots=True)
class Learned:
    """The batches of a sentinel that is lost which every gate has learned from."""

    sentinel: str
    applied: Applied


RecoveryReport = StageSaved | SentinelSaved | Learned
