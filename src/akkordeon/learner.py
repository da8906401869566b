"""How gradients become an update: the staleness rule, clipping, the optimizer, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from akkordeon.errors import ForeignParameterError, RecipeError
from akkordeon.staleness import Rule
from akkordeon.weights import Snapshot, Weights

__all__ = ["Learner", "OptimizerFactory", "clipped"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer | tuple[Optimizer, LRScheduler]]
"""From parameters to an optimizer, or to (optimizer, scheduler); the scheduler steps once per update."""


class Learner:
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
        self._step = None if self._optimizer is None else _bare_step(self._optimizer)
        self._state = rule.initial(weights.masters)

    @property
    def spares_gradients(self) -> bool:
        """Whether the optimizer is known not to write to the gradients it is given.

        Those of torch on a CPU do not, unless they are told to work on all tensors at once (foreach).
        """
        optimizer = self._optimizer
        return optimizer is None or (
            type(optimizer).__module__.startswith(("torch.optim", "akkordeon"))
            and not any(group.get("foreach") for group in optimizer.param_groups)
            and all(master.device.type == "cpu" for master in self._weights.masters)
        )

    def learn(self, gradients: list[Tensor | None], then: Snapshot, staleness: int) -> None:
        """Make the next version of the weights; if the optimizer raises, the last one stays.

        Args:
            gradients: one for each parameter, in memory of their own; None where there is none.
            then: the weights the gradients were computed at.
            staleness: τ, the number of updates since then.
        """
        if self._step is None:
            return
        weights = self._weights
        gradients = self._rule.correct(gradients, weights.now, then, staleness, self._state)
        if self._clip_norm is not None:
            gradients = clipped(gradients, self._clip_norm)
        weights.prepare_update()
        try:
            for master, gradient in zip(weights.masters, gradients, strict=True):
                master.grad = gradient
            self._step()
            if self._scheduler is not None:
                self._scheduler.step()
        except BaseException:
            weights.roll_back()
            raise
        for master in weights.masters:
            master.grad = None
        weights.publish()


def clipped(gradients: list[Tensor | None], max_norm: float) -> list[Tensor | None]:
    """The gradients scaled down so that their common norm is at most ``max_norm``; out of place."""
    there = [gradient for gradient in gradients if gradient is not None]
    if any(gradient.is_sparse for gradient in there):
        raise RecipeError("clip_norm needs dense gradients; make the embedding sparse=False")
    factor = torch.clamp(max_norm / (nn.utils.get_total_norm(there) + 1e-6), max=1.0)
    return [None if gradient is None else gradient * factor for gradient in gradients]


def _built(factory: OptimizerFactory, weights: Weights, label: str) -> tuple[Optimizer, LRScheduler | None]:
    built = factory(weights.masters)
    optimizer, scheduler = built if isinstance(built, tuple) else (built, None)
    if not isinstance(optimizer, Optimizer):
        raise RecipeError(
            f"the optimizer function of {label} gave a {type(optimizer).__name__}; it must return a "
            "torch.optim.Optimizer, or (optimizer, scheduler)"
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


def _bare_step(optimizer: Optimizer) -> Callable[[], object]:
    """The optimizer's step without the label for the profiler, which costs as much as a small update.

    Where anybody put something around this optimizer's step (a scheduler, a hook), it is left alone.
    """
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        _global_optimizer_pre_hooks,
        _global_optimizer_post_hooks,
    )
    labelled = type(optimizer).step
    if "step" in vars(optimizer) or any(hooks) or not hasattr(labelled, "hooked"):
        return optimizer.step
    return partial(labelled.__wrapped__, optimizer)  # type: ignore[attr-defined]  # functools.wraps put it there
