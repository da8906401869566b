"""Which kind of gate a recipe asks for."""

from __future__ import annotations

from akkordeon.core.plain_state import StageState
from akkordeon.core.schedules import TwoBuffers
from akkordeon.pipeline.devices.ahead_gate import AheadGate
from akkordeon.pipeline.diagnostics.diagnosed_gate import diagnosed
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.learning.accumulating_gate import AccumulatingGate, gathered_in
from akkordeon.pipeline.learning.clipping_gate import ClippingGate
from akkordeon.pipeline.schedules.correcting_gate import CorrectingGate
from akkordeon.pipeline.schedules.predicting_gate import PredictingGate
from akkordeon.pipeline.schedules.predicting_two_buffers_gate import PredictingTwoBuffersGate
from akkordeon.pipeline.schedules.two_buffers_gate import TwoBuffersGate
from akkordeon.pipeline.schedules.vertical_gate import VerticalGate
from akkordeon.pipeline.stage import Position

__all__ = ["gate_actor"]


def gate_actor(
    gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
) -> GateActor:
    """The actor of a gate; see :class:`GateActor`.

    One that goes on from a state with gathered gradients has them in its first update, also where its recipe
    accumulates no more.
    """
    kind: type[GateActor] = GateActor
    if isinstance(position.schedule, TwoBuffers):
        kind = PredictingTwoBuffersGate if gate.staleness.looks_ahead else TwoBuffersGate
    elif gate.staleness.looks_ahead:
        kind = PredictingGate
    elif gate.staleness.looks_back:
        kind = CorrectingGate
    elif gate.staleness.is_vertical:
        kind = VerticalGate
    elif position.clip_norm is not None:
        kind = ClippingGate
    elif (
        position.schedule.batches_per_update(gate.accumulate) > 1
        or gate.schedule_by == "samples"
        or gathered_in(restored)
    ):
        kind = AccumulatingGate
    elif gate.lives_on is not None and gate.lives_on.type == "cuda":
        kind = AheadGate
    if gate.diagnose_every is not None:
        kind = diagnosed(kind)
    return kind(gate, position, restored, anew=anew)
