"""A gate that clips the norm of the whole gradient, as far as it is known by then.

    gate/0 ◀──Backward: n₁² + n₂²── gate/1 ◀──Backward: n₂²── gate/2        n₀, n₁, n₂: norms of one batch
       │
       └─ √(n₀² + n₁² + n₂²) ──Forward, with the batches that follow──▶ gate/1 ──▶ gate/2

A gate that updates does not know yet what the gates before it will add. It takes the norm of the latest
whole gradient that the first gate knew when it sent the batch on, or what is known of the batch itself where
that is more, of the gates behind and its own. So all gates scale a batch alike, one round trip late, unless
its gradient is larger than the one before: those who see that scale it down further. A row of one gate knows
the norm of the batch itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from akkordeon.core.actor import Effect
from akkordeon.core.messages import Backward, Forward
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.learning.accumulating_gate import AccumulatingGate
from akkordeon.pipeline.stage import Position, Stashed
from akkordeon.pipeline.updater import norm_of, scaled_down

__all__ = ["ClippingGate"]

CLIPPING = "clipping"
"""Where the state has what is known of norms; gates that do not clip the whole have none."""


class ClippingGate(AccumulatingGate):
    """A gate of a network with ``clip_whole_norm`` at work; see :class:`GateActor`."""

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        assert position.clip_norm is not None, "else there is nothing to clip"
        self._max_norm = position.clip_norm
        self._squared_norm = 0.0  # of what the latest update of this gate was made of
        self._whole_norm = 0.0  # the latest that the first gate knows
        super().__init__(gate, position, restored, anew=anew)
        before = (restored.learner or {}).get(CLIPPING) if restored is not None else None
        if before is not None:
            self._squared_norm, self._whole_norm = before["squared_norm"], before["whole_norm"]

    def _forward(self, message: Forward) -> Iterator[Effect]:
        if self.position.previous is None:
            is_alone = self.position.next is None
            message = replace(message, norm=0.0 if is_alone else self._whole_norm)
        return super()._forward(message)

    def _learn(
        self, passed: Backward, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> Iterator[Effect]:
        """Update as any gate does, but measure first: the norm goes on with the backward."""
        mean = self._gather(passed.batch, gradients, stashed, staleness)
        norm = norm_of(mean.gradients) if mean is not None and self._updater.learns else None
        if mean is not None:
            value = 0.0 if norm is None else norm.item()
            self._squared_norm = value * value
        squared = max(0.0, passed.squared_norm) + self._squared_norm
        if self.position.previous is None and math.isfinite(squared):
            self._whole_norm = math.sqrt(squared)
        yield self._to_previous(replace(passed, squared_norm=squared))
        if mean is None:
            return
        if norm is not None:
            known = norm.new_tensor(max(stashed.norm, math.sqrt(squared)))
            mean = mean._replace(gradients=scaled_down(mean.gradients, self._max_norm, known))
        yield from self._make_update(mean)

    def _learner_state(self) -> LearnerState:
        known = {"squared_norm": self._squared_norm, "whole_norm": self._whole_norm}
        return {**super()._learner_state(), CLIPPING: known}
