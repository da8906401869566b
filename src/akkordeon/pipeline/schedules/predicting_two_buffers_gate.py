"""A gate whose gradients are one update old, of weights that were expected by now.

    W(0) ── W(0) ──▶ W(1) ── W(0) ──▶ W(2) ── Ŵ(2) ──▶ W(3) ── Ŵ(3) ──▶ W(4) …
    Ŵ(t) = W(t-1) + f(1)·(W(t-1) - W(t-2))                    W(t+1) = W(t) - η ∇f(Ŵ(t))

Batches of the update that is next are on what was expected of the latest version before it was made, those of
the one after it on what is expected to follow it. Which a batch is of is known as in :class:`TwoBuffersGate`.
"""

from __future__ import annotations

from collections.abc import Iterator

from akkordeon.core.actor import Effect
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.core.streams.messages import TakeOver
from akkordeon.core.surgery.messages import Change
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.schedules.two_buffers_gate import TwoBuffersGate
from akkordeon.pipeline.stage import Position
from akkordeon.pipeline.weights import Snapshot

__all__ = ["PredictingTwoBuffersGate"]

EXPECTED = "expected"
"""Where the state has what was expected of the latest version; other gates have none."""


class PredictingTwoBuffersGate(TwoBuffersGate):
    """A gate of a network with ``schedule=TwoBuffers(…)`` whose rule looks ahead; see :class:`GateActor`."""

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        self._expected: Snapshot | None = None  # of the latest version
        super().__init__(gate, position, restored, anew=anew)
        self._expected = self._restored_version(restored, EXPECTED)
        self._next = self._ahead(1)  # of the one after it

    def _choose(self, in_no_update: int) -> tuple[Snapshot, int]:
        weights, version = super()._choose(in_no_update)
        expected = self._next if version == self.version else self._expected
        return expected or weights, version

    def _updated(self, before: Snapshot | None) -> None:
        super()._updated(before)
        self._expected, self._next = self._next, self._ahead(1)

    def _change(self, message: Change) -> Iterator[Effect]:
        """Expect by the new rule from now on, as a gate does that goes on from what is kept here."""
        yield from super()._change(message)
        self._next = self._ahead(1)

    def _take_over(self, message: TakeOver) -> Iterator[Effect]:
        self._expected = self._next = None
        yield from super()._take_over(message)

    def weights_held(self) -> list[Snapshot]:
        """See :class:`GateActor`."""
        return [*super().weights_held(), *filter(None, (self._expected, self._next))]

    def _learner_state(self) -> LearnerState:
        return {**super()._learner_state(), **self._version_state(EXPECTED, self._expected)}
