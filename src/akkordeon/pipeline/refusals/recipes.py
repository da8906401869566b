"""What a network refuses of its gates as it is written down."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.modules.batchnorm import _NormBase

from akkordeon.core.errors import RecipeError, SharedParameterError, explain
from akkordeon.core.schedules import Schedule, TwoBuffers
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.module_state import tensors_of
from akkordeon.pipeline.splitting.part import Part

__all__ = ["refuse_off_schedule", "refuse_shared", "refuse_to_compile", "refuse_uncopyable"]


def refuse_uncopyable(i: int, gate: Gate) -> None:
    """Refuse a module that no gate could have a copy of, or that could not be handed out again."""
    try:
        copied(gate.module, structure_only=True)
    except Exception as error:  # whatever its own copying raises
        raise RecipeError(
            f"the module of gate {i} ({type(gate.module).__name__}) cannot be copied: {explain(error)}; keep "
            "what cannot be copied out of its attributes"
        ) from error
    tensors_of(gate.module)


def refuse_to_compile(i: int, gate: Gate) -> None:
    """Refuse to compile the forward of a whole module that a gate runs for some of its parts."""
    if gate.compile is not False and isinstance(gate.module, Part):
        raise RecipeError(
            f"gate {i} cannot have compile: it was cut from a forward by an example, and keeps count of its "
            "calls in Python that changes with each; compile gates that are written as such, or cut from an "
            "nn.Sequential"
        )


def refuse_off_schedule(
    schedule: object, gates: Sequence[Gate], clip_whole_norm: float | None, max_staleness: int | None
) -> None:
    """Refuse what is no schedule, and gates that cannot keep to it."""
    if not isinstance(schedule, Schedule):
        raise RecipeError(f"schedule is Async(), Flush(m) or TwoBuffers(m), got {schedule!r}")
    for i, gate in enumerate(gates):
        together = schedule.batches_per_update(gate.accumulate)
        if gate.accumulate not in (1, together):
            raise RecipeError(
                f"gate {i} has accumulate={gate.accumulate}, and by the schedule {schedule} an update is "
                f"made of {together} batches at every gate; leave accumulate out"
            )
        if isinstance(schedule, TwoBuffers) and not gate.staleness.keeps_weights:
            raise RecipeError(
                f"gate {i} has staleness={gate.staleness}, which keeps no weights but the latest, and by the "
                f"schedule {schedule} a gate computes on those before; give it Stash()"
            )
        if isinstance(schedule, TwoBuffers) and gate.staleness.is_vertical:
            raise RecipeError(
                f"gate {i} has staleness={gate.staleness}, which has forwards on weights of its own, as the "
                f"schedule {schedule} has: leave one of them out"
            )
        rule = gate.staleness
        if (rule.looks_ahead or rule.looks_back or rule.is_vertical) and clip_whole_norm is not None:
            raise RecipeError(
                f"gate {i} has staleness={gate.staleness}, which goes with no clip_whole_norm; give the "
                "gates a clip_norm each instead"
            )
    if isinstance(schedule, TwoBuffers) and max_staleness == 0:
        raise RecipeError(
            f"the network has max_staleness=0, and by the schedule {schedule} all gradients are one update "
            "old; leave max_staleness out, or take Flush(m)"
        )
    if schedule.is_exact and clip_whole_norm is not None:
        raise RecipeError(
            f"the network has clip_whole_norm={clip_whole_norm}, which goes with no schedule={schedule}; "
            "give the gates a clip_norm each instead"
        )


def refuse_shared(gates: Sequence[Gate]) -> None:
    """Refuse gates that would share weights or statistics."""
    owners: dict[int, tuple[int, str]] = {}
    norms: dict[int, int] = {}
    for i, gate in enumerate(gates):
        for name, part in gate.module.named_modules():
            if isinstance(part, _NormBase) and part.track_running_stats:
                j = norms.setdefault(id(part), i)
                if j != i:
                    raise SharedParameterError(
                        f"the statistics of {name!r} of gate {i} are also those of gate {j}; copy the layer, "
                        "or put both uses into one gate"
                    )
        for name, parameter in gate.module.named_parameters():
            j, other = owners.setdefault(id(parameter), (i, name))
            if j != i:
                raise SharedParameterError(
                    f"the parameter {name!r} of gate {i} is also {other!r} of gate {j}; a gate owns its "
                    "parameters alone: copy it, or put both layers into one gate"
                )
