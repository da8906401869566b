"""A gate whose forwards are on other weights than the latest: earlier ones, or those it expects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from akkordeon.core.actor import Effect
from akkordeon.core.messages import Batch, Forward
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.core.streams.messages import TakeOver
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.learning.accumulating_gate import AccumulatingGate
from akkordeon.pipeline.stage import Position, Stashed
from akkordeon.pipeline.weights import Snapshot

__all__ = ["ChosenWeightsGate"]

EARLIER = "earlier"
"""Where the state has the version before the latest; other gates have none."""


class ChosenWeightsGate(AccumulatingGate):
    """It keeps the version before the latest, too; see :class:`GateActor`."""

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        super().__init__(gate, position, restored, anew=anew)
        self._earlier = self._restored_version(restored, EARLIER)
        self._chosen = self.weights.now, self.version

    @abstractmethod
    def _choose(self, in_no_update: int) -> tuple[Snapshot, int]:
        """The weights that the next batch is computed on, and the version that its staleness is counted from.

        Args:
            in_no_update: batches that are here, and in no update yet.
        """

    def _begin(self, batch: Batch) -> None:
        super()._begin(batch)
        self._chosen = self._choose(len(self._gathered.batches) + len(self.stash))

    def _through(self, payload: Payload) -> tuple[Payload, Payload]:
        with self.weights.computing_on(self._chosen[0]):
            return super()._through(payload)

    def _stashed(self, message: Forward, x: Payload, y: Payload) -> Stashed:
        weights, version = self._chosen
        return Stashed(x, y, weights, version, message.samples, message.norm)

    def _before_update(self) -> Snapshot | None:
        return self.weights.pin()

    def _take_over(self, message: TakeOver) -> Iterator[Effect]:
        """Go on without a version before the latest: that one led elsewhere."""
        self._earlier = None
        yield from super()._take_over(message)

    def _ahead(self, updates: int) -> Snapshot | None:
        """The weights that the rule expects so many updates later; None where it has nothing to go by."""
        if self._earlier is None:
            return None
        expected = self._updater.rule.ahead(self.weights.now, self._earlier, updates)
        return self.weights.as_weights(weight.detach() for weight in expected)

    def _learner_state(self) -> LearnerState:
        return {**super()._learner_state(), **self._version_state(EARLIER, self._earlier)}

    def _version_state(self, what: str, version: Snapshot | None) -> LearnerState:
        """A version of the weights, if there is one, as the state has it under that name."""
        if version is None:
            return {}
        weights = zip(self.weights.names, version, strict=True)
        return {what: {"weights": {name: each.detach().clone() for name, each in weights}}}

    def _restored_version(self, restored: StageState | None, what: str) -> Snapshot | None:
        """What :meth:`_version_state` has kept; None where some weights are from a gate that had none."""
        kept = (restored.learner or {}).get(what) if restored is not None else None
        if kept is None or not kept["weights"].keys() >= set(self.weights.names):
            return None
        return self.weights.like_now(kept["weights"])
