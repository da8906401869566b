"""Other settings for what a gate learns with, while it is at work.

A learner is plain data (:data:`akkordeon.core.plain_state.LearnerState`). So one with other settings is made
as new, goes on from the state of the one before as far as that is not to be new, and takes its place only
when all of that has worked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from akkordeon.core.checks import is_number, require_factor, require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.core.plain_state import LearnerState
from akkordeon.core.surgery.messages import OF_RECIPE
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.updater import BOOST, FROZEN, Updater
from akkordeon.pipeline.weights import Weights

__all__ = ["changed", "recipe_with"]

CALLED = {"staleness": "rule"}
"""What an updater calls settings of a recipe that it calls otherwise."""

FIXED = {"params", "initial_lr", "foreach", "fused", "capturable", "differentiable"}
"""What else is in a group of parameters, and is decided when an optimizer is made."""


def recipe_with(gate: Gate, settings: Mapping[str, Any]) -> Gate:
    """The recipe of a gate with those settings that are part of it.

    Raises:
        RecipeError: one cannot have this value.
    """
    return replace(gate, **{name: settings[name] for name in OF_RECIPE if name in settings})


def changed(updater: Updater, weights: Weights, label: str, settings: Mapping[str, Any]) -> Updater:
    """A learner with other settings, which goes on from another one.

    Args:
        updater: the one before; it stays as it is.
        weights: what it updates.
        label: whose they are, for errors.
        settings: ``optimizer``, ``staleness`` and ``clip_norm`` as in a :class:`akkordeon.Gate`, of which
            another optimizer and another rule begin as new; ``frozen``, whether the weights stay as they are
            while gradients pass through; ``reset_optimizer``, to forget what the optimizer knows of past
            gradients; ``boost``, a factor and a number, to multiply learning rates by it in so many updates;
            all others are options of the optimizer, such as ``lr``, for all its groups of parameters.

    Raises:
        RecipeError: there is no such setting, or it cannot have this value.
        ForeignParameterError: the optimizer holds parameters that are not these.
    """
    options = dict(settings)
    recipe = {CALLED.get(name, name): options.pop(name) for name in OF_RECIPE if name in options}
    frozen = _flag("frozen", options.pop("frozen", updater.frozen))
    is_reset = _flag("reset_optimizer", options.pop("reset_optimizer", False))
    boost = _boost(options.pop("boost", updater.boost), label)
    rule = recipe.get("rule", updater.rule)
    for what, is_same in (
        ("forwards on the latest weights", rule.looks_ahead == updater.rule.looks_ahead),
        ("backwards on weights that it guesses", rule.looks_back == updater.rule.looks_back),
        ("one version for a whole row", rule.is_vertical == updater.rule.is_vertical),
    ):
        if not is_same:
            raise RecipeError(
                f"{label} cannot go from {updater.rule} to {rule} while it is at work: only one of "
                f"these has {what}; begin with a rule that has them where the other has"
            )
    average, before = weights.average, updater.state()
    try:
        fresh = updater.like(**recipe)
        state = _state(before, fresh.state(), recipe, is_reset)
        if options:
            _refuse_scheduled(state, options, label)
            state["optimizer"] = _with_options(state["optimizer"], options, label)
        if boost is not None:
            _require_lr(state["optimizer"], label)
        fresh.load({**state, FROZEN: frozen, BOOST: boost})
    except BaseException:
        weights.average = average
        raise
    if "rule" in recipe:
        weights.keep_versions(recipe["rule"].keeps_weights)
    return fresh


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RecipeError(f"{name} is True or False, got {value!r}")
    return value


def _boost(value: Any, label: str) -> tuple[float, int] | None:
    if value is None:
        return None
    try:
        factor, updates = value
    except (TypeError, ValueError):
        raise RecipeError(f"the boost of {label} is (factor, updates), got {value!r}") from None
    require_factor(f"the factor of the boost of {label}", factor)
    require_whole(f"the updates of the boost of {label}", updates)
    return factor, updates


def _require_lr(optimizer: Any, label: str) -> None:
    if optimizer is not None and not all("lr" in group for group in optimizer["groups"]):
        raise RecipeError(f"the optimizer of {label} has no learning rate that could be multiplied")


def _state(
    before: LearnerState, fresh: LearnerState, recipe: Mapping[str, Any], is_reset: bool
) -> dict[str, Any]:
    """What a new learner goes on from: the state of the one before, but for what is to be new."""
    kinds = {**before["kinds"]}
    state: dict[str, Any] = {**before, "kinds": kinds}
    if "optimizer" in recipe:
        state |= {what: fresh[what] for what in ("optimizer", "scheduler", "updates")}
        kinds |= {what: fresh["kinds"][what] for what in ("optimizer", "scheduler")}
    elif is_reset and state["optimizer"] is not None:
        state["optimizer"] = {**before["optimizer"], "state": fresh["optimizer"]["state"]}
    if "rule" in recipe:
        state["rule"] = fresh["rule"]
        kinds["staleness rule"] = fresh["kinds"]["staleness rule"]
    return state


def _refuse_scheduled(state: LearnerState, options: Mapping[str, Any], label: str) -> None:
    """Refuse a learning rate, or a momentum, that the next update would set again."""
    scheduler = state["kinds"]["scheduler"]
    sets = {"lr": "learning rate"} if scheduler not in (None, ReduceLROnPlateau.__name__) else {}
    if sets and state["scheduler"].get("cycle_momentum"):  # as those of one cycle, or more
        sets |= {"momentum": "momentum", "betas": "momentum"}
    for name, what in sets.items():
        if name in options:
            raise RecipeError(
                f"the {what} of {label} is set by its scheduler, {scheduler}, with every update; give it "
                "both anew: set(optimizer=…), with a function that makes both, or no scheduler"
            )


def _with_options(optimizer: Any, options: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The state of an optimizer with other options in all its groups.

    Raises:
        RecipeError: there is no optimizer, or none with such an option, or it cannot have this value.
    """
    groups = [] if optimizer is None else optimizer["groups"]
    for name, value in options.items():
        known = sorted(set.intersection(*map(set, groups)) - FIXED) if groups else []
        if name not in known:
            has = f"its optimizer has {', '.join(known)}" if known else "it has no optimizer"
            raise RecipeError(
                f"{label} has no setting {name!r}: there are optimizer, staleness, clip_norm, frozen, "
                f"reset_optimizer and boost, and {has}"
            )
        for group in groups:
            _check_option(name, value, group[name], label)
    return {**optimizer, "groups": [{**group, **options} for group in groups]}


def _check_option(name: str, value: object, before: object, label: str) -> None:
    """Refuse what an optimizer would not have taken, or would only fail on in its next step."""
    if isinstance(before, bool):
        _flag(f"{name} of {label}", value)
    elif is_number(before) and not _is_amount(value):
        raise RecipeError(f"{name} of {label} is a number of at least 0, got {value!r}")
    elif isinstance(before, tuple | list) and not (
        isinstance(value, tuple | list) and len(value) == len(before) and all(map(_is_amount, value))
    ):
        raise RecipeError(f"{name} of {label} are {len(before)} numbers of at least 0, got {value!r}")


def _is_amount(value: Any) -> bool:
    return is_number(value) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
