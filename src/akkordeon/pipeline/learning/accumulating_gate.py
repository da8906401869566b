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
from akkordeon.core.messages import Batch
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.learning.gathered import Gathered
from akkordeon.pipeline.stage import Position, Stashed

__all__ = ["AccumulatingGate", "gate_actor"]

GATHERED = "gathered"
"""Where the state has it; gates that take no mean have none."""


class AccumulatingGate(GateActor):
    """A gate with ``accumulate`` at work; see :class:`GateActor`."""

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        self._gathered = Gathered(gate.accumulate)
        super().__init__(gate, position, restored, anew=anew)
        before = _gathered_in(restored)
        if before is not None:
            self._gathered.load(before, self.weights.names)

    def _learn(
        self, batch: Batch, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> Iterator[Effect]:
        gathered = self._gathered
        gathered.add(batch, self._updater.corrected(gradients, stashed.weights, staleness))
        self.staleness_seen[staleness] += 1
        if not gathered.is_enough:
            return
        batches, mean = gathered.take_mean()
        if not self._updater.apply(mean):
            for each in batches:
                yield self._refuse_update(each)
            return
        self.version += 1
        yield from self._tell_watchers()
        yield from self._save_if_due()

    def _learner_state(self) -> LearnerState:
        return {**super()._learner_state(), GATHERED: self._gathered.state(self.weights.names)}


def gate_actor(
    gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
) -> GateActor:
    """The actor of a gate, of the kind that its recipe asks for; see :class:`GateActor`.

    One that goes on from a state with gathered gradients has them in its first update, also where its recipe
    accumulates no more.
    """
    kind = AccumulatingGate if gate.accumulate > 1 or _gathered_in(restored) else GateActor
    return kind(gate, position, restored, anew=anew)


def _gathered_in(state: StageState | None) -> Mapping[str, Any] | None:
    """What was gathered by then, if anything."""
    gathered = None if state is None or state.learner is None else state.learner.get(GATHERED)
    return gathered if gathered and gathered["batches"] else None
