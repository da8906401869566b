"""A gate whose gradients are all one update old.

    batches of the update that is next:         forward on the version before the latest
    batches of the one after it, sent early:    forward on the latest

    W(0) ── W(0) ──▶ W(1) ── W(0) ──▶ W(2) ── W(1) ──▶ W(3) …          W(t+1) = W(t) - η ∇f(W(t-1))

Which update a batch belongs to is known from how many are here that are in none yet. So gates agree, though
at this one the update before may have been made when the batch arrives, and at another not yet; unless a
batch is refused that some of them had counted.
"""

from __future__ import annotations

from akkordeon.pipeline.schedules.chosen_weights_gate import ChosenWeightsGate
from akkordeon.pipeline.weights import Snapshot

__all__ = ["TwoBuffersGate"]


class TwoBuffersGate(ChosenWeightsGate):
    """A gate of a network with ``schedule=TwoBuffers(…)`` at work; see :class:`GateActor`."""

    def _choose(self, in_no_update: int) -> tuple[Snapshot, int]:
        if self._earlier is None or in_no_update >= self._gathered.enough:
            return self.weights.now, self.version
        return self._earlier, self.version - 1
