"""Makes the optimizer and the scheduler of a stage, and refuses what could not serve a gate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.optim import SGD, Adagrad, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    _use_grad_for_differentiable,
)

from akkordeon.core.errors import AkkordeonError, ForeignParameterError, RecipeError, explain
from akkordeon.core.numerics.autograd import without_gradients
from akkordeon.core.payload import memory
from akkordeon.pipeline.module_copy import tensors_in
from akkordeon.pipeline.optimizers.composed import all_within
from akkordeon.pipeline.weights import Weights

__all__ = [
    "OptimizerFactory",
    "bare_step",
    "built",
    "is_hooked",
    "keeps_to_rows",
    "refuse_kept_memory",
    "with_lr_times",
]

NAMED = "named_parameters"
"""What an optimizer function calls its argument that wants (name, parameter) pairs."""

OptimizerFactory = Callable[[Iterable[Any]], Optimizer | tuple[Optimizer, LRScheduler]]
"""From parameters to an optimizer, or to (optimizer, scheduler); the scheduler steps once per update.

A function whose argument is called ``named_parameters`` gets (name, parameter) pairs, as
``nn.Module.named_parameters`` gives them: for groups that go by name, as without weight decay for biases.
A ``ReduceLROnPlateau`` steps once per round of a validator that has ``schedule_by``.
"""


_LABELLING = Optimizer.profile_hook_step(lambda optimizer: None).__code__
"""The code of the wrapper that PyTorch puts around the ``step`` of every optimizer."""

_WITHOUT_GRADIENTS = _use_grad_for_differentiable(lambda optimizer: None).__code__
"""The code of the one that PyTorch's own optimizers have inside it, to step without building a graph."""


def built(factory: OptimizerFactory, weights: Weights, label: str) -> tuple[Optimizer, LRScheduler | None]:
    """The optimizer of a stage's weights, and its scheduler.

    Args:
        factory: the user's.
        weights: of the stage.
        label: whose they are, for errors.

    Raises:
        RecipeError: the function fails, or what it gives could not update a gate's weights.
        ForeignParameterError: the optimizer holds other parameters.
    """
    lay = [master.data_ptr() for master in weights.masters]
    try:
        built = factory(_as_asked(factory, weights))
    except AkkordeonError:
        raise
    except Exception as error:
        raise RecipeError(f"the optimizer function of {label} failed: {explain(error)}") from error
    optimizer, scheduler = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(optimizer, Optimizer):
        raise RecipeError(
            f"the optimizer function of {label} gave a {type(optimizer).__name__}; it must return a "
            "torch.optim.Optimizer, or (optimizer, scheduler)"
        )
    for each in all_within(optimizer):
        _refuse_unfit(each, label)
    if scheduler is not None:
        _refuse_unfit_scheduler(scheduler, optimizer, label)
    refuse_kept_memory(optimizer, weights, label)
    _spare_questions(optimizer, weights)
    if lay != [master.data_ptr() for master in weights.masters]:
        raise RecipeError(
            f"the optimizer function of {label} gave its parameters other memory, as for one flat tensor of "
            "them all; a gate moves its weights with every update, so have it update its parameters"
        )
    own = {id(master) for master in weights.masters}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in own:
                raise ForeignParameterError(
                    f"the optimizer of {label} holds a parameter of shape {tuple(parameter.shape)} that is "
                    "not the gate's; build it from the parameters it is given: lambda params: SGD(params, …)"
                )
    return optimizer, scheduler


def _as_asked(factory: OptimizerFactory, weights: Weights) -> list[Any]:
    """The parameters, or pairs of name and parameter for a function of ``named_parameters``."""
    try:
        wants_names = NAMED in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # what is not written in Python may have none
        wants_names = False
    if wants_names:
        return list(zip(weights.known_as, weights.masters, strict=True))
    return list(weights.masters)


def refuse_kept_memory(optimizer: Optimizer, weights: Weights, label: str) -> None:
    """Refuse an optimizer that keeps ``p.data``: with the next update the parameter has other memory."""
    held = {memory(master.data) for master in weights.masters}
    for kept in tensors_in(vars(optimizer).values(), known=weights.masters):
        if memory(kept) in held:
            raise RecipeError(
                f"the optimizer of {label} keeps the memory of its parameters, as by p.data, and a gate "
                "moves its weights with every update; have it ask for p.data in each step"
            )


def _spare_questions(optimizer: Optimizer, weights: Weights) -> None:
    """Say that the weights are not for kernels that take many, which is asked before each update on a CPU.

    Those of others may ask for something else, and answer it otherwise.
    """
    is_pytorchs = type(optimizer).__module__.startswith("torch.optim.")
    if is_pytorchs and all(master.device.type == "cpu" for master in weights.masters):
        for group in optimizer.param_groups:
            if group.get("foreach", False) is None and group.get("fused", False) is None:
                group["foreach"] = False


def _refuse_unfit(optimizer: Optimizer, label: str) -> None:
    """Refuse an optimizer that could not make one update from a gradient."""
    kind = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise RecipeError(
            f"the optimizer of {label} is {kind}, whose step needs a closure that computes the loss again; a "
            "gate has one gradient for each batch: use an optimizer without a closure, such as SGD or Adam"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise RecipeError(f"the optimizer of {label} is {kind}(differentiable=True); leave that out")


def _refuse_unfit_scheduler(scheduler: object, optimizer: Optimizer, label: str) -> None:
    """Refuse what is no scheduler, and one that would set the learning rates of another optimizer.

    An optimizer around another one shares its groups: then a scheduler of either sets those of both.
    """
    if not callable(getattr(scheduler, "step", None)):
        raise RecipeError(
            f"the optimizer function of {label} gave a {type(scheduler).__name__} as its scheduler, which "
            "has no step; it must return a torch.optim.Optimizer, or (optimizer, scheduler)"
        )
    scheduled = getattr(scheduler, "optimizer", None)  # one of the user's may keep it elsewhere
    groups = {id(group) for group in optimizer.param_groups}
    if isinstance(scheduled, Optimizer) and groups.isdisjoint(map(id, scheduled.param_groups)):
        raise RecipeError(
            f"the scheduler of {label} sets the learning rate of another optimizer than the one it came "
            "with; make both of one: optimizer = SGD(params, …); return optimizer, StepLR(optimizer, …)"
        )


def bare_step(optimizer: Optimizer) -> Callable[[], object] | None:
    """The optimizer's step without PyTorch's wrappers around it, which cost more than a small update.

    None where it is not PyTorch's wrapper that is outermost.
    """
    labelled = type(optimizer).step
    if getattr(labelled, "__code__", None) is not _LABELLING:
        return None
    step = labelled.__wrapped__  # type: ignore[attr-defined]  # functools.wraps put it there
    if getattr(step, "__code__", None) is _WITHOUT_GRADIENTS and not optimizer.defaults["differentiable"]:
        return partial(without_gradients, step.__wrapped__, optimizer)
    return partial(step, optimizer)


def keeps_to_rows(optimizer: Optimizer) -> bool:
    """Whether it is known to write only to the rows of a table that a sparse gradient has.

    Momentum goes on moving rows that had a gradient earlier.
    """
    if type(optimizer) is SGD:
        return not any(group["momentum"] for group in optimizer.param_groups)
    return type(optimizer) in (Adagrad, SparseAdam)


@contextmanager
def with_lr_times(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Have the learning rates of all its groups multiplied; afterwards they are the very ones they were."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def is_hooked(optimizer: Optimizer) -> bool:
    """Whether somebody is to be told of its steps."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )
