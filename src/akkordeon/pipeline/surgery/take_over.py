"""What a gate goes on from that another one like it has learned, while it is at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import all_finite
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.pipeline.module_state import Statistics, write
from akkordeon.pipeline.updater import FROZEN, Updater
from akkordeon.pipeline.weights import Weights

__all__ = ["taken_over"]


def taken_over(
    states: Sequence[StageState], module: nn.Module, weights: Weights, buffers: Statistics, updater: Updater
) -> Updater:
    """Put the last of some states into a module at work, and give what it goes on learning with.

    Whoever holds the weights and buffers of before keeps them. What is frozen stays so. An optimizer, or a
    rule, that the other did not learn with begins as new.

    Raises:
        RecipeError: they are those of another module.
    """
    if not states:
        raise RecipeError("it is to take over from nobody")
    state, places = states[-1], range(len(weights.names))
    came = [state.tensors[name] for name in weights.names if name in state.tensors]
    if state.learner is None or not weights.can_adopt(came, places) or not all_finite(came):
        raise RecipeError("it is to take over weights that are none of its module's, or not finite")
    average, before = weights.average, [weight.detach() for weight in weights.now]
    buffers.renew()
    weights.adopt(came, places)  # first, as what begins as new may begin with the weights
    try:
        write({name: tensor for name, tensor in state.tensors.items() if name not in weights.names}, module)
        fresh = updater.like()
        fresh.load({**_fitting(state.learner, fresh.state()), FROZEN: updater.frozen})
    except BaseException:
        buffers.roll_back()
        weights.adopt(before, places)
        weights.average = average
        raise
    return fresh


def _fitting(learned: LearnerState, own: LearnerState) -> dict[str, Any]:
    """What another has learned with, but for what this one has others of: those of its own, which are new."""
    kinds, others = own["kinds"], learned["kinds"]
    fitting = {**learned, "kinds": kinds}
    if any(kinds[what] != others[what] for what in ("optimizer", "scheduler")):
        fitting |= {what: own[what] for what in ("optimizer", "scheduler", "updates")}
    if kinds["staleness rule"] != others["staleness rule"] or own["rule"].keys() != learned["rule"].keys():
        fitting["rule"] = own["rule"]
    return fitting
