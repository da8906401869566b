"""A gate whose forwards are on the weights that it expects by the time the gradient comes.

stash: 7 8 9       batch 10 comes: three updates are ahead of its gradient
w(t−1) ── w(t) ─ ─ ─ ─ ─ ─ ▶ ŵ       forward and backward of batch 10, whose update is then of w(t+3)
"""

from __future__ import annotations

from akkordeon.pipeline.schedules.chosen_weights_gate import ChosenWeightsGate
from akkordeon.pipeline.weights import Snapshot

__all__ = ["PredictingGate"]


class PredictingGate(ChosenWeightsGate):
    """A gate at work whose rule looks ahead; see :class:`GateActor`."""

    def _choose(self, in_no_update: int) -> tuple[Snapshot, int]:
        updates = in_no_update // self._gathered.enough
        expected = self._ahead(updates) if updates else None
        return expected or self.weights.now, self.version
