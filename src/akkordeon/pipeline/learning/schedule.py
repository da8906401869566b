"""Moves a scheduler on with every update: by one, or by the samples that the update has learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.learning.optimizer_state import copied_plain

__all__ = ["load_scheduler", "moving"]


def moving(scheduler: LRScheduler | None, by_samples: bool, label: str) -> Callable[[int], object] | None:
    """What moves a scheduler on, given the samples of an update; None where updates do not.

    By samples it is, after an update, where as many steps would take it as there were samples so far. Its
    ``last_epoch`` is that number, so that its state has it.

    Args:
        scheduler: by samples, one that a formula sets to any step.
        by_samples: count samples, and not updates.
        label: whose it is, for errors.

    Raises:
        RecipeError: it is to go by samples, and has no such formula.
    """
    if scheduler is None or (isinstance(scheduler, ReduceLROnPlateau) and not by_samples):
        return None
    if not by_samples:
        return lambda samples: scheduler.step()
    set_to = _setter(scheduler)
    if set_to is None:
        raise RecipeError(
            f"the scheduler of {label} is {type(scheduler).__name__}, which goes from one step to the next "
            "and cannot be set to a number of samples; use LambdaLR, or leave out schedule_by='samples'"
        )
    return lambda samples: set_to(scheduler.last_epoch + samples)


def _setter(scheduler: LRScheduler) -> Callable[[int], object] | None:
    """What sets a scheduler to a step, as ``step(epoch)`` does with a warning; None where nothing does."""
    if isinstance(scheduler, CosineAnnealingWarmRestarts):
        return scheduler.step
    has_formula = isinstance(scheduler, LambdaLR | OneCycleLR | CyclicLR)
    if has_formula or hasattr(scheduler, "_get_closed_form_lr"):
        set_to: Callable[[int], object] = getattr(scheduler, "_update_lr", scheduler.step)
        return set_to
    return None


def load_scheduler(scheduler: LRScheduler, state: Mapping[str, Any], label: str) -> None:
    """Have a scheduler go on from what its ``state_dict`` gave, as plain data; that stays as it is."""
    plain = copied_plain(state, f"the scheduler of {label}")
    scheduler.load_state_dict(_with_counters(plain, scheduler.state_dict()))


def _with_counters(plain: Any, own: Any) -> Any:
    """Plain data with the counters that a scheduler has, and those in it: ``MultiStepLR`` has milestones."""
    if isinstance(own, Counter):
        return Counter(plain)
    if isinstance(own, Mapping) and isinstance(plain, Mapping):
        return {key: _with_counters(each, own.get(key)) for key, each in plain.items()}
    if isinstance(own, list) and isinstance(plain, list) and len(own) == len(plain):
        return [_with_counters(each, mine) for each, mine in zip(plain, own, strict=True)]
    return plain
