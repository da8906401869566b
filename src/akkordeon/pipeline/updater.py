"""How gradients become an update: the staleness rule, clipping, the optimizer, all or nothing."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    _use_grad_for_differentiable,
)

from akkordeon.core.errors import AkkordeonError, ForeignParameterError, RecipeError, explain
from akkordeon.core.numerics.autograd import without_gradients
from akkordeon.core.payload import memory
from akkordeon.core.plain_state import LearnerState
from akkordeon.pipeline.learning.optimizer_state import copied_plain, load_optimizer, state_of_optimizer
from akkordeon.pipeline.module_copy import tensors_in
from akkordeon.pipeline.staleness import Rule
from akkordeon.pipeline.weights import Snapshot, Weights

__all__ = ["OptimizerFactory", "Updater", "clipped"]

UPDATES_WITHOUT_SCORE = 1000
"""After so many it is said that a scheduler waits for a score."""

UPDATES_WITHOUT_GRADIENT = 100
"""After so many it is said which parameters never had a gradient."""

NAMED = "named_parameters"
"""What an optimizer function calls its argument that wants (name, parameter) pairs."""

OptimizerFactory = Callable[[Iterable[Any]], Optimizer | tuple[Optimizer, LRScheduler]]
"""From parameters to an optimizer, or to (optimizer, scheduler); the scheduler steps once per update.

A function whose argument is called ``named_parameters`` gets (name, parameter) pairs, as
``nn.Module.named_parameters`` gives them: for groups that go by name, as without weight decay for biases.
A ``ReduceLROnPlateau`` steps once per round of a validator that has ``schedule_by``.
"""


class Updater:
    """Updates weights.

    Args:
        weights: what is updated.
        optimizer: the factory; None leaves the weights as they are.
        rule: what to do with stale gradients.
        clip_norm: largest norm of the gradient; None for any.
        label: whose weights these are, for errors.

    Raises:
        ForeignParameterError: the optimizer holds parameters that are not these.
        RecipeError: the factory gives something else than an optimizer.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: OptimizerFactory | None,
        rule: Rule,
        clip_norm: float | None,
        label: str,
    ) -> None:
        self._weights = weights
        self._rule = rule
        self._clip_norm = clip_norm
        self._optimizer: Optimizer | None = None
        self._scheduler: LRScheduler | None = None
        if optimizer is not None and weights.masters:
            self._optimizer, self._scheduler = _built(optimizer, weights, label)
        self._bare_step = None if self._optimizer is None else _bare_step(self._optimizer)
        plateau = isinstance(self._scheduler, ReduceLROnPlateau)
        self._wanted_score = _WantedScore(label) if plateau else None
        self._state = rule.initial(weights.masters)
        self._label = label
        self._updates = 0
        self._without_gradient = set(weights.trainable)

    @property
    def spares_gradients(self) -> bool:
        """Whether the optimizer is known not to write to the gradients it is given.

        Those of torch on a CPU do not, unless they are told to work on all tensors at once (foreach). Their
        hooks may.
        """
        optimizer = self._optimizer
        return optimizer is None or (
            type(optimizer).__module__.startswith(("torch.optim", "akkordeon"))
            and not _is_hooked(optimizer)
            and not any(group.get("foreach") for group in optimizer.param_groups)
            and all(master.device.type == "cpu" for master in self._weights.masters)
        )

    def update(self, gradients: list[Tensor | None], then: Snapshot, staleness: int) -> bool:
        """Make the next version of the weights; if the optimizer raises, the last one stays.

        Args:
            gradients: one for each parameter, in memory of their own; None where there is none.
            then: the weights the gradients were computed at.
            staleness: τ, the number of updates since then.

        Returns:
            Whether there is one; False where it would not have been finite, and the last one stays.
        """
        if self._optimizer is None:
            return True
        weights = self._weights
        gradients = self._rule.correct(gradients, weights.now, then, staleness, self._state)
        if self._clip_norm is not None:
            gradients = clipped(gradients, self._clip_norm)
        weights.prepare_update(gradients)
        try:
            for master, gradient in zip(weights.masters, gradients, strict=True):
                master.grad = gradient
            self._step()
            if not self._updates:
                _refuse_kept_memory(self._optimizer, weights, self._label)
            if not weights.are_finite():
                return self._undo()
            if self._scheduler is not None and self._wanted_score is None:
                self._scheduler.step()
        except BaseException:
            weights.roll_back()
            raise
        finally:
            for master in weights.masters:
                master.grad = None
        weights.publish()
        self._updates += 1
        if self._without_gradient:
            self._warn_without_gradient(gradients)
        if self._wanted_score is not None:
            self._wanted_score.updated()
        return True

    def _step(self) -> None:
        """Have the optimizer work, bare unless there is something around its step: that may come late."""
        optimizer = self._optimizer
        assert optimizer is not None, "nothing else is updated"
        if self._bare_step is None or "step" in vars(optimizer) or _is_hooked(optimizer):
            optimizer.step()
        else:
            self._bare_step()

    def _warn_without_gradient(self, gradients: list[Tensor | None]) -> None:
        """Warn once of parameters that no loss has depended on so far."""
        waiting = self._without_gradient
        waiting.difference_update([i for i in waiting if gradients[i] is not None])
        if waiting and self._updates == UPDATES_WITHOUT_GRADIENT:
            names = ", ".join(repr(self._weights.names[i]) for i in sorted(waiting))
            waiting.clear()
            logging.getLogger(__name__).warning(
                "%s has made %d updates, and its %s never had a gradient: no loss has depended on it",
                self._label,
                self._updates,
                names,
            )

    def _undo(self) -> bool:
        if not self._weights.keep:
            raise ArithmeticError(
                "its update made weights that are not finite, and a rule that keeps no weights has none to "
                "go back to; a smaller learning rate may help"
            )
        self._weights.roll_back()
        return False

    # ── kept and put back ────────────────────────────────────────────────────────────────────────────

    def state(self) -> LearnerState:
        """What it learns with, in memory of its own.

        Raises:
            RecipeError: the optimizer or the scheduler keeps what is no plain data.
        """
        optimizer, scheduler = self._optimizer, self._scheduler
        return {
            "optimizer": None
            if optimizer is None
            else state_of_optimizer(optimizer, self._names_by_group(optimizer), self._label),
            "scheduler": None
            if scheduler is None
            else copied_plain(scheduler.state_dict(), f"the scheduler of {self._label}"),
            "rule": {name: tensor.clone() for name, tensor in self._rule_tensors().items()},
            "updates": self._updates,
        }

    def load(self, state: LearnerState) -> None:
        """Go on from such a state.

        Raises:
            RecipeError: it is of another optimizer, scheduler or rule.
        """
        optimizer, scheduler = self._optimizer, self._scheduler
        own = self._rule_tensors()
        for what, mine, theirs in (
            ("an optimizer", optimizer, state["optimizer"]),
            ("a scheduler", scheduler, state["scheduler"]),
            ("a staleness rule with a state", own or None, state["rule"] or None),
        ):
            if (mine is None) is not (theirs is None):
                has, lacks = ("state", "recipe") if mine is None else ("recipe", "state")
                raise RecipeError(
                    f"the {has} of {self._label} has {what}, and its {lacks} has not; resume with the "
                    "recipe that was kept"
                )
        if optimizer is not None:
            load_optimizer(optimizer, state["optimizer"], self._names_by_group(optimizer), self._label)
        if scheduler is not None:
            scheduler.load_state_dict(copied_plain(state["scheduler"], f"the scheduler of {self._label}"))
        for name, tensor in own.items():
            tensor.copy_(state["rule"][name])
        self._updates = state["updates"]

    def _rule_tensors(self) -> dict[str, Tensor]:
        """What the staleness rule keeps of each weight, by its name."""
        tensors = self._rule.tensors_of(self._state)
        return dict(zip(self._weights.names, tensors, strict=True)) if tensors else {}

    def _names_by_group(self, optimizer: Optimizer) -> list[str]:
        named = {id(m): name for m, name in zip(self._weights.masters, self._weights.names, strict=True)}
        return [named[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def scored(self, value: float) -> None:
        """Take the score of a validation round, for a scheduler that wants one (``ReduceLROnPlateau``)."""
        if self._wanted_score is not None:
            self._wanted_score.came()
            self._scheduler.step(value)  # type: ignore[union-attr, arg-type]  # a ReduceLROnPlateau's metric


class _WantedScore:
    """Warns once where a scheduler waits for a score that nobody sends."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._updates_left: float = UPDATES_WITHOUT_SCORE

    def came(self) -> None:
        self._updates_left = math.inf

    def updated(self) -> None:
        self._updates_left -= 1
        if self._updates_left == 0:
            logging.getLogger(__name__).warning(
                "the scheduler of %s wants a score, and after %d updates none has come: give a validator "
                "schedule_by='loss', or the name of one of its scores",
                self._label,
                UPDATES_WITHOUT_SCORE,
            )


def clipped(gradients: list[Tensor | None], max_norm: float) -> list[Tensor | None]:
    """The gradients scaled down so that their common norm is at most ``max_norm``; out of place."""
    there = [gradient for gradient in gradients if gradient is not None]
    if any(gradient.is_sparse for gradient in there):
        raise RecipeError("clip_norm needs dense gradients; make the embedding sparse=False")
    factor = torch.clamp(max_norm / (nn.utils.get_total_norm(there) + 1e-6), max=1.0)
    return [None if gradient is None else gradient * factor for gradient in gradients]


_LABELLING = Optimizer.profile_hook_step(lambda optimizer: None).__code__
"""The code of the wrapper that PyTorch puts around the ``step`` of every optimizer."""

_WITHOUT_GRADIENTS = _use_grad_for_differentiable(lambda optimizer: None).__code__
"""The code of the one that PyTorch's own optimizers have inside it, to step without building a graph."""


def _built(factory: OptimizerFactory, weights: Weights, label: str) -> tuple[Optimizer, LRScheduler | None]:
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
    _refuse_unfit(optimizer, label)
    if scheduler is not None:
        _refuse_unfit_scheduler(scheduler, optimizer, label)
    _refuse_kept_memory(optimizer, weights, label)
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
        return list(zip(weights.names, weights.masters, strict=True))
    return list(weights.masters)


def _refuse_kept_memory(optimizer: Optimizer, weights: Weights, label: str) -> None:
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


def _bare_step(optimizer: Optimizer) -> Callable[[], object] | None:
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


def _is_hooked(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )
