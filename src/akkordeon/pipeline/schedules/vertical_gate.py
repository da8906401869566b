"""A gate whose forwards are on the version that the first gate of its row had when the batch came.

    gate/0    B4 ▶ F9 "after 4" ─┐                     backwards come in one order to all gates, so "after 4"
    gate/1         B5   B6       └─▶ F9 on the         is one version of the whole row; gates further down
                                     weights of B4     have gone on from it, and have kept it

Versions go by the batch that was handled last and not by number: a gate that refuses an update has one fewer
than others from then on. The first gate has all batches in flight in its stash, so it also says which is the
oldest version that one may still need: sentinels take turns at gates, so that of another may be overtaken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from akkordeon.core.actor import Effect
from akkordeon.core.messages import Backward, Batch, Forward
from akkordeon.core.plain_state import StageState
from akkordeon.core.streams.messages import TakeOver
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.schedules.chosen_weights_gate import ChosenWeightsGate
from akkordeon.pipeline.stage import Position, Stashed
from akkordeon.pipeline.weights import Snapshot

__all__ = ["VerticalGate"]

NOTHING_YET = Batch("", 0)
"""In place of the batch that was handled last, before there is one."""


class VerticalGate(ChosenWeightsGate):
    """A gate at work whose rule is :class:`VerticalSync`; see :class:`GateActor`.

    One that does not know the batch, as it was made anew meanwhile, computes on its latest weights.
    """

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        super().__init__(gate, position, restored, anew=anew)
        self._after: tuple[Batch, ...] = ()
        self._in_flight: dict[Batch, Batch] = {}  # which version each is on, where this gate says it
        self._versions: dict[Batch, tuple[Snapshot, int]] = {}  # by the batch handled last, oldest first
        self._keep(NOTHING_YET)

    def _keep(self, batch: Batch) -> None:
        self._versions[batch] = self.weights.pin(), self.version

    def _forward(self, message: Forward) -> Iterator[Effect]:
        if not message.after:
            message = replace(message, after=self._stamp(message.batch))
        self._after = message.after
        return super()._forward(message)

    def _stamp(self, batch: Batch) -> tuple[Batch, Batch]:
        """The latest version, for a batch, and the oldest that one which comes after it may need."""
        latest = next(reversed(self._versions))
        self._in_flight = {each: its for each, its in self._in_flight.items() if each in self.stash}
        others = (its for each, its in self._in_flight.items() if each.sentinel != batch.sentinel)
        oldest = next(others, latest)
        self._in_flight[batch] = latest
        return latest, oldest

    def _choose(self, in_no_update: int) -> tuple[Snapshot, int]:
        its, oldest = self._after[0], self._after[-1]
        if oldest in self._versions:
            while next(iter(self._versions)) != oldest:
                del self._versions[next(iter(self._versions))]
        return self._versions.get(its, (self.weights.now, self.version))

    def _learn(
        self, passed: Backward, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> Iterator[Effect]:
        yield from super()._learn(passed, gradients, stashed, staleness)
        self._keep(passed.batch)

    def _take_over(self, message: TakeOver) -> Iterator[Effect]:
        """Compute on no version of before: those led elsewhere."""
        yield from super()._take_over(message)
        self._keep(next(reversed(self._versions)))

    def weights_held(self) -> list[Snapshot]:
        """See :class:`GateActor`."""
        return [*super().weights_held(), *(weights for weights, _ in self._versions.values())]

    def _before_update(self) -> Snapshot | None:
        return None
