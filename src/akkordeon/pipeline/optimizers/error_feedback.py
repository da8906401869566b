"""An optimizer that makes up for the update before, which came one update too late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import all_finite
from akkordeon.pipeline.optimizers.composed import Composed, loss_of
from akkordeon.pipeline.optimizers.ordered_momentum import OrderedMomentum

__all__ = ["ErrorFeedback"]


class ErrorFeedback(Composed):
    """Error feedback for gradients that are one update old (arXiv:2606.30634).

    Had the update before been known one update earlier, it would have been this one. So what it was wrong by
    is added::

        u(t): the whole update of the optimizer inside, learning rate ε(t) and weight decay included
        v(t) = u(t-1) ε(t)/ε(t-1), the update before with the learning rate of this one
        w ← w - u(t) - c (u(t) - v(t))              w ← w - u(t) the first time

    So a learning rate, and what it is multiplied by for a while, scales all of the step. A parameter without
    a gradient stays, and what is known of its update before is dropped. An update that makes a weight that
    is not finite is not remembered: a gate takes it back.

    Args:
        inside: the optimizer; it is not to be used by itself any more.
        c: how much of the error is made up for.

    Raises:
        RecipeError: the optimizer makes up for delays itself.
    """

    def __init__(self, inside: Optimizer, c: float = 1.0) -> None:
        if isinstance(inside, OrderedMomentum):
            raise RecipeError(
                "ordered momentum gives late gradients the way that they missed, so error feedback around it "
                "would make up for it twice; leave one of them out"
            )
        super().__init__(inside)
        self._c = c

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_c": self._c}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of the optimizer inside, and what its step before was wrong by."""
        loss = loss_of(closure)
        rates = {p: float(group.get("lr", 1.0)) for group in self.param_groups for p in group["params"]}
        before = {p: None if p.grad is None else p.detach().clone() for p in rates}
        super().step()
        updates = {p: was.sub_(p) for p, was in before.items() if was is not None}
        for parameter, update in updates.items():
            self._correct(parameter, update, rates[parameter])
        if all_finite(updates):
            for parameter, rate in rates.items():
                self._remember(parameter, updates.get(parameter), rate)
        return loss

    def _correct(self, parameter: Tensor, update: Tensor, rate: float) -> None:
        """Add what the update before was wrong by; one at a rate of 0 says nothing."""
        last = self.state[parameter].get("last_update")
        last_rate = self.state[parameter].get("last_lr")
        if last is not None and last_rate:
            parameter.sub_(update.sub(last, alpha=rate / last_rate), alpha=self._c)

    def _remember(self, parameter: Tensor, update: Tensor | None, rate: float) -> None:
        if update is not None:
            self.state[parameter].update(last_update=update, last_lr=rate)
        elif parameter in self.state:
            self.state[parameter].pop("last_update", None)
            self.state[parameter].pop("last_lr", None)
