"""A sentinel that has its gates settle: what they have gathered of an update is one then.

    nothing in flight ─▶ Settle to every gate ─▶ update of what is there ─▶ Settled ─▶ go on, or end

It does so at its end, and where it does not know any more where in an update its gates are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from akkordeon.core.actor import Effect, Send
from akkordeon.core.schedules import Schedule
from akkordeon.core.shard_messages import Settle, Settled
from akkordeon.sentinels.base import SentinelActor
from akkordeon.sentinels.recipes import Training
from akkordeon.sentinels.training.epoch import Flight
from akkordeon.sentinels.training.pace import Pace

__all__ = ["SettlingSentinel"]


class SettlingSentinel(SentinelActor[Flight]):
    """What a training sentinel knows of what its gates have gathered; see ``Trainer`` for the arguments."""

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        recipe: Training,
        saves: bool,
        schedule: Schedule,
    ) -> None:
        super().__init__(address, name, row, reader, recipe.role, recipe.in_flight, saves)
        self._pace = Pace(schedule, recipe.in_flight)
        self._settles = recipe.replica is not None or schedule.is_exact
        self._unsettled: set[str] = set()
        self._handlers[Settled] = self._settled

    @property
    def _is_under_way(self) -> bool:
        return super()._is_under_way or bool(self._unsettled)

    def _settle(self) -> Iterator[Effect]:
        """Nothing is in flight: have all gates make an update of what they have."""
        if not self._unsettled:
            self._unsettled.update(self._row)
            yield from self._to_all(Settle(self.address))

    def _settle_again(self, gate: str) -> Iterator[Effect]:
        """A gate was made anew, from before it settled perhaps."""
        if self._unsettled and gate in self._row:
            self._unsettled.add(gate)
            yield Send(gate, Settle(self.address))

    def _settled(self, message: Settled, now_s: float) -> Iterator[Effect]:
        before, self._unsettled = self._unsettled, self._unsettled - {message.by}
        if before and not self._unsettled:
            self._pace.count_from(self.batches.trained)
            yield from self._all_settled(now_s)

    @abstractmethod
    def _all_settled(self, now_s: float) -> Iterator[Effect]:
        """No gate has anything gathered."""
