"""An optimizer of our own that works on one parameter after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from akkordeon.pipeline.optimizers.composed import loss_of

__all__ = ["ByParameter"]


class ByParameter(Optimizer):
    """What its classes say is how one gradient is applied. A parameter without one stays as it is."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply one gradient of each parameter."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._apply(parameter, parameter.grad, group)
        return loss

    @abstractmethod
    def _apply(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Apply a gradient, with the settings of the parameter's group."""
