"""A row of gates that begins anew beside the one at work, and what both are worth since then.

alarm ─▶ shadow: predict, then learn, as those at work do ─▶ which was better? ─▶ take over, or forget
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from akkordeon.core.errors import DataError
from akkordeon.core.payload import Payload, samples
from akkordeon.core.plain_state import StageState
from akkordeon.core.streams.reports import ShadowTried
from akkordeon.sentinels.loss import Loss
from akkordeon.sentinels.streaming.drift import Drift

__all__ = ["ShadowRow", "Trial"]

Scores = Callable[[Payload, Any], Mapping[str, float]]
"""From outputs and labels to the loss and the scores, by name."""


class ShadowRow(Protocol):
    """Gates that nobody else talks to."""

    def predict(self, x: Payload) -> Payload:
        """The outputs for a batch."""

    def learn(self, x: Payload, y: Any, loss: Loss) -> float:
        """Learn from a batch; its loss before that."""

    def states(self) -> dict[str, StageState]:
        """What other gates can go on from, by address, head first."""


class Trial:
    """A shadow and the gates at work, on the same examples.

    Args:
        drift: says what counts.
        examples: how long it takes; the later half counts, as the shadow knows nothing at first.
        row: the shadow.
    """

    def __init__(self, drift: Drift, examples: int, row: ShadowRow) -> None:
        self._drift = drift
        self._examples = examples
        self._row = row
        self._tried = self._counted = 0
        self._at_work = self._shadow = 0.0  # sums
        self._has_failed = False

    def add(self, x: Payload, y: Any, at_work: Mapping[str, float], scores: Scores, loss: Loss) -> None:
        """Have the shadow predict an example and learn from it; the others have the scores ``at_work``."""
        size, on = samples(x), self._drift.on
        self._tried += size
        try:
            own = scores(self._row.predict(x), y)[on]
            self._row.learn(x, y, loss)
        except DataError:  # its gates refuse it, as where training diverges
            self._has_failed = True
            return
        if self._tried > self._examples / 2:
            self._counted += size
            self._at_work += at_work[on] * size
            self._shadow += own * size

    @property
    def is_over(self) -> bool:
        """Whether it is known which is better."""
        return self._has_failed or self._tried >= self._examples

    def successors(self, row: Sequence[str]) -> dict[str, StageState]:
        """What the gates of a row are to go on from; nothing if the shadow is no better, or of others."""
        if self._has_failed or not self._drift.is_worse(self._at_work, self._shadow):
            return {}
        states = self._row.states()
        return states if [*states] == [*row] else {}

    def report(self, sentinel: str, examples: int, takes_over: bool) -> ShadowTried:
        """What came of it, after so many examples that were scored."""
        counted = self._counted or 1
        means = self._at_work / counted, self._shadow / counted
        return ShadowTried(sentinel, self._drift.on, examples, *means, takes_over)
