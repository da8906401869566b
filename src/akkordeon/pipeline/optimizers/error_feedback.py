"""An optimizer that makes up for the update before, which came one update too late."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from akkordeon.pipeline.optimizers.composed import Composed

__all__ = ["ErrorFeedback"]


class ErrorFeedback(Composed):
    """Error feedback for gradients that are one update old (arXiv:2606.30634).

    Had the update before been known one update earlier, it would have been this one. So what it was wrong by
    is added::

        u(t): the whole update of the optimizer inside, learning rate and weight decay included
        w ← w - u(t) - c (u(t) - u(t-1))            w ← w - u(t) the first time

    A parameter without a gradient stays, and what is known of its update before is dropped.

    Args:
        inside: the optimizer; it is not to be used by itself any more.
        c: how much of the error is made up for.
    """

    def __init__(self, inside: Optimizer, c: float = 1.0) -> None:
        super().__init__(inside)
        self._c = c

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of the optimizer inside, and what its step before was wrong by."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [None if p.grad is None else p.detach().clone() for p in parameters]
        loss = super().step(closure)
        for parameter, was in zip(parameters, before, strict=True):
            if was is None:
                self.state.get(parameter, {}).pop("last_update", None)
                continue
            update = was.sub_(parameter)
            last = self.state[parameter].get("last_update")
            if last is not None:
                parameter.sub_(update - last, alpha=self._c)
            self.state[parameter]["last_update"] = update
        return loss
