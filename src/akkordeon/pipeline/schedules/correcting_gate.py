"""A gate whose backwards are on what it guesses the weights of the forward to have been.

w(t) ── w(t+1) ── w(t+2) ── w(t+3)        one memory, that each update writes to: nothing else is kept
  ▲                            │
  └ ─ ─ ─ ─ u ◀ ─ ─ ─ ─ ─ ─ ─ ─┘          the backward of a batch that went forward on w(t); the update
                                          with it is of w(t+3)

The graph of a batch in flight has the weights in the memory in which they are now. So for its backward u is
put there, and w again afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from akkordeon.core.messages import Batch
from akkordeon.core.payload import Payload
from akkordeon.pipeline.learning.accumulating_gate import AccumulatingGate
from akkordeon.pipeline.stage import Stashed
from akkordeon.pipeline.weights import Snapshot

__all__ = ["CorrectingGate"]


class CorrectingGate(AccumulatingGate):
    """A gate at work whose rule looks back; see :class:`GateActor`."""

    def _derived(
        self, batch: Batch, stashed: Stashed, gradient: Payload | None
    ) -> tuple[Payload | None, list[Tensor | None]]:
        staleness, updater = self.version - stashed.version, self._updater
        if not staleness:
            return super()._derived(batch, stashed, gradient)
        guessed = updater.rule.behind(self.weights.now, staleness, updater.rule_state)
        with _holding(self.weights.now, guessed):
            return super()._derived(batch, stashed, gradient)

    def _before_update(self) -> Snapshot | None:
        return tuple(weight.detach().clone() for weight in self.weights.now)

    def _updated(self, before: Snapshot | None) -> None:
        assert before is not None, "it was kept"
        self._updater.rule.follow(before, self.weights.now, self._updater.rule_state)


@contextmanager
def _holding(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Have other values in the memory of weights for a while, unseen by the graphs that are built on it."""
    trainable = [i for i, weight in enumerate(weights) if weight.requires_grad]
    own = {i: weights[i].detach().clone() for i in trainable}
    try:
        for i in trainable:
            weights[i].data.copy_(values[i])
        yield
    finally:
        for i in trainable:
            weights[i].data.copy_(own[i])
