"""A gate whose gradients are all one update old.

    batches of the update that is next:         forward on the version before the latest
    batches of the one after it, sent early:    forward on the latest

    W(0) ── W(0) ──▶ W(1) ── W(0) ──▶ W(2) ── W(1) ──▶ W(3) …          W(t+1) = W(t) - η ∇f(W(t-1))

Which update a batch belongs to is known from how many are here that are in none yet. So gates agree, though
at this one the update before may have been made when the batch arrives, and at another not yet; unless a
batch is refused that some of them had counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from akkordeon.core.actor import Effect
from akkordeon.core.messages import Forward
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.core.streams.messages import TakeOver
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.learning.accumulating_gate import AccumulatingGate
from akkordeon.pipeline.stage import Position, Stashed
from akkordeon.pipeline.weights import Snapshot

__all__ = ["TwoBuffersGate"]

EARLIER = "earlier"
"""Where the state has the version before the latest; other gates have none."""


class TwoBuffersGate(AccumulatingGate):
    """A gate of a network with ``schedule=TwoBuffers(…)`` at work; see :class:`GateActor`."""

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        super().__init__(gate, position, restored, anew=anew)
        kept = (restored.learner or {}).get(EARLIER) if restored is not None else None
        if kept is not None:
            self._earlier = self.weights.like_now(kept["weights"])

    def _through(self, payload: Payload) -> tuple[Payload, Payload]:
        with self.weights.computing_on(self._chosen()[0]):
            return super()._through(payload)

    def _chosen(self) -> tuple[Snapshot, int]:
        """The weights that the next batch is computed on, and their version."""
        in_no_update = len(self._gathered.batches) + len(self.stash)
        if self._earlier is None or in_no_update >= self._gathered.enough:
            return self.weights.now, self.version
        return self._earlier, self.version - 1

    def _stashed(self, message: Forward, x: Payload, y: Payload) -> Stashed:
        weights, version = self._chosen()
        return Stashed(x, y, weights, version, message.samples, message.norm)

    def _take_over(self, message: TakeOver) -> Iterator[Effect]:
        """Go on without a version before the latest: that one led elsewhere."""
        self._earlier = None
        yield from super()._take_over(message)

    def _before_update(self) -> Snapshot:
        return self.weights.pin()

    def _learner_state(self) -> LearnerState:
        state = super()._learner_state()
        if self._earlier is None:
            return state
        weights = zip(self.weights.names, self._earlier, strict=True)
        return {**state, EARLIER: {"weights": {name: each.detach().clone() for name, each in weights}}}
