"""A gate that measures, with some batches, how stale its gradients are; it learns what it would learn.

    Backward of a batch in the sample ─▶ stale gradient ──┬─▶ cosine
                                         fresh gradient ──┘
                                         what the staleness rule makes of the stale one ─▶ correction

Nothing is sent for it, and no number that the gate learns with depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from torch import Tensor

from akkordeon.core.actor import Effect, Report
from akkordeon.core.diagnostics.diagnosis import Diagnosis
from akkordeon.core.errors import explain
from akkordeon.core.messages import Batch, Probe
from akkordeon.core.numerics.autocast import autocast_of
from akkordeon.core.numerics.generator import GeneratorUse
from akkordeon.core.payload import Payload
from akkordeon.core.reports import GateStatus
from akkordeon.pipeline.diagnostics.fresh_gradient import (
    GeneratorStates,
    Twin,
    generators_at,
    generators_now,
)
from akkordeon.pipeline.diagnostics.measures import Spread, copies_in, cosine, relative_correction
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.stage import Position, Stashed

__all__ = ["DiagnosedGate", "diagnosed", "is_sampled"]


def is_sampled(batch: Batch, every: int) -> bool:
    """Whether a batch is measured: one in each ``every``, at another place in each.

    Always the same place would always be the same one of the batches that an update is made of.
    """
    stretch, place = divmod(batch.number, every)
    return place == stretch % every


class DiagnosedGate(GateActor):
    """A gate with ``diagnose_every`` at work, of whatever kind comes after it; see :class:`GateActor`."""

    def __init__(self, gate: Gate, position: Position, *args: Any, **others: Any) -> None:
        super().__init__(gate, position, *args, **others)
        assert gate.diagnose_every is not None, "else there is nothing to measure"
        self._every = gate.diagnose_every
        self._twin = self._twin_of(gate, position)
        self._generators: dict[Batch, GeneratorStates] = {}  # before the forwards of batches in the sample
        self._measured = self._failed = 0
        self._why: str | None = None
        self._cosines, self._corrections = Spread(), Spread()
        self._copies_max = self._bytes_max = 0

    def _twin_of(self, gate: Gate, position: Position) -> Twin:
        module = copied(gate.module)
        if self.device is not None:
            module.to(self.device)
        for part, its in zip(module.modules(), self.module.modules(), strict=True):
            part.training = its.training
        around = position.autocast if gate.autocast is None else autocast_of(module, gate.autocast)
        return Twin(module, around, position.previous is not None)

    def _begin(self, batch: Batch) -> None:
        """Note where the process's generator is before a forward that may draw from it."""
        if is_sampled(batch, self._every):
            kept = {known: its for known, its in self._generators.items() if known in self.stash}
            self._generators = {**kept, batch: generators_now(self.device, self._may_draw)}
        super()._begin(batch)

    @property
    def _may_draw(self) -> bool:
        """Whether its module may draw from the CPU's generator, which others may be using otherwise."""
        return self._generator.use is not GeneratorUse.NONE

    def _derived(
        self, batch: Batch, stashed: Stashed, gradient: Payload | None
    ) -> tuple[Payload | None, list[Tensor | None]]:
        try:
            found = super()._derived(batch, stashed, gradient)
        finally:
            if self.generator_use is GeneratorUse.DRAWS:
                self.generator_use = GeneratorUse.ALONE  # it rewinds the generator, too
        if is_sampled(batch, self._every):
            self._measure(batch, stashed, gradient, found[1])
        return found

    def _measure(
        self, batch: Batch, stashed: Stashed, gradient: Payload | None, stale: list[Tensor | None]
    ) -> None:
        copies, in_bytes = copies_in(self.weights_held())
        self._copies_max = max(self._copies_max, copies)
        self._bytes_max = max(self._bytes_max, in_bytes)
        states = self._generators.pop(batch, GeneratorStates())
        try:
            fresh = stale
            if stashed.version != self.version or stashed.weights is not self.weights.now:
                fresh = self._fresh(batch, stashed, gradient, states)
            self._cosines.add(cosine(stale, fresh))
            if self._updater.learns:
                self._corrections.add(self._correction(stashed, stale))
            self._measured += 1
        except Exception as error:  # the module may raise anything; training goes on without the figure
            self._failed += 1
            self._why = explain(error)

    def _fresh(
        self, batch: Batch, stashed: Stashed, gradient: Payload | None, then: GeneratorStates
    ) -> list[Tensor | None]:
        keys = [key for _, key in self._keys(batch)]
        with generators_at(then, self.device, self._may_draw):
            found = self._twin.gradients(
                stashed.x, gradient, self.weights.now, self.buffers.now, keys, self._derive
            )
        return self.weights.at_all_places(found)

    def _correction(self, stashed: Stashed, stale: list[Tensor | None]) -> float:
        """What the staleness rule will add; it is asked once more, with a copy of what it may change."""
        rule, state = self._updater.rule, copy.deepcopy(self._updater.rule_state)
        staleness = self.version - stashed.version
        corrected = rule.correct(stale, self.weights.now, stashed.weights, staleness, state)
        return relative_correction(stale, corrected)

    def _probe(self, message: Probe) -> Iterator[Effect]:
        for effect in super()._probe(message):
            if isinstance(effect, Report) and isinstance(effect.record, GateStatus):
                effect = Report(replace(effect.record, diagnosis=self._diagnosis()))
            yield effect

    def _diagnosis(self) -> Diagnosis:
        copies, in_bytes = copies_in(self.weights_held())
        return Diagnosis(
            every=self._every,
            batches=self._measured,
            cosine_mean=self._cosines.mean,
            cosine_min=self._cosines.least,
            correction_mean=self._corrections.mean,
            correction_max=self._corrections.most,
            copies=copies,
            copies_max=max(copies, self._copies_max),
            bytes=in_bytes,
            bytes_max=max(in_bytes, self._bytes_max),
            failed=self._failed,
            why=self._why,
        )


@cache
def diagnosed(kind: type[GateActor]) -> type[GateActor]:
    """The gates of a kind that measure as well."""
    return type(f"Diagnosed{kind.__name__}", (DiagnosedGate, kind), {})
