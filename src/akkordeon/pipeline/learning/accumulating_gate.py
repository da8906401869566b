"""A gate that makes one update of several batches.

    Backward 0 ─▶ gradient ─┐
    Backward 1 ─▶ gradient ─┼─▶ mean ─▶ clip, step ─▶ next version
    Backward 2 ─▶ gradient ─┘

Each gradient is corrected by itself, as its own staleness says, and then added. A version is still an update,
and so is what staleness counts. What was gathered and is not yet an update is part of what the gate learns
with; it waits for the next batches, whoever sends them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from akkordeon.core.actor import Effect
from akkordeon.core.messages import Backward, Batch
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.core.shard_messages import Settle
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.learning.gathered import Gathered, GatheredMean
from akkordeon.pipeline.stage import Position, Stashed
from akkordeon.pipeline.weights import Snapshot

__all__ = ["AccumulatingGate", "gathered_in"]

GATHERED = "gathered"
"""Where the state has it; gates that take no mean have none."""


class AccumulatingGate(GateActor):
    """A gate with ``accumulate``, or a schedule by samples, at work; see :class:`GateActor`."""

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        self._gathered = Gathered(position.schedule.batches_per_update(gate.accumulate))
        self._earlier: Snapshot | None = None  # the version before the latest, where somebody needs it
        super().__init__(gate, position, restored, anew=anew)
        before = gathered_in(restored)
        if before is not None:
            self._gathered.load(before, self.weights.names)

    def _learn(
        self, passed: Backward, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> Iterator[Effect]:
        yield self._to_previous(passed)
        mean = self._gather(passed.batch, gradients, stashed, staleness)
        if mean is not None:
            yield from self._make_update(mean)

    def _gather(
        self, batch: Batch, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> GatheredMean | None:
        """Add the gradients of a batch; what an update is to be made of, if there are enough."""
        gathered = self._gathered
        gathered.add(batch, self._updater.corrected(gradients, stashed.weights, staleness), stashed.samples)
        self.staleness_seen[staleness] += 1
        return gathered.take() if gathered.is_enough else None

    def _make_update(self, mean: GatheredMean) -> Iterator[Effect]:
        before = self._before_update()
        if not self._updater.apply(mean.gradients, mean.samples):
            for batch in mean.batches:
                yield self._refuse_update(batch)
            return
        self.version += 1
        self._updated(before)
        yield from self._tell_watchers()
        yield from self._save_if_due()

    def _settle(self, message: Settle) -> Iterator[Effect]:
        """Whoever asks sends nothing more: by a schedule what is gathered is an update then."""
        if self._gathered.batches and self.position.schedule.is_exact:
            yield from self._make_update(self._gathered.take())
        yield from super()._settle(message)

    def _before_update(self) -> Snapshot | None:
        """The weights, where they are to be kept until the update after this one."""
        return None

    def _updated(self, before: Snapshot | None) -> None:
        """An update has been made of the weights before."""
        self._earlier = before

    def weights_held(self) -> list[Snapshot]:
        """See :class:`GateActor`."""
        return [*super().weights_held(), *([] if self._earlier is None else [self._earlier])]

    def _learner_state(self) -> LearnerState:
        return {**super()._learner_state(), GATHERED: self._gathered.state(self.weights.names)}


def gathered_in(state: StageState | None) -> Mapping[str, Any] | None:
    """What was gathered by then, if anything."""
    gathered = None if state is None or state.learner is None else state.learner.get(GATHERED)
    return gathered if gathered and gathered["batches"] else None
