"""An optimizer for shards that get pseudo-gradients: what local SGD calls the outer optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.optimizers.by_parameter import ByParameter

__all__ = ["DelayedNesterov"]


class DelayedNesterov(ByParameter):
    """Nesterov momentum for pushes that come one by one (Liu et al. 2024, arXiv:2401.09135).

    With momentum, each of N asynchronous pushes would be carried on by all that follow it. So momentum is
    renewed every N-th push only, with the mean of the N, and pushes between are applied plainly. For the
    t-th push g, from 0, with learning rate ε, momentum β, buffer N and c in [0, 1/N]::

        D ← D + g
        if (t + 1) mod N = 0:   m ← βm + D/N;   Θ ← Θ − ε((1 − cN + c)βm + g/N);   D ← 0
        else:                                   Θ ← Θ − ε(cβm + g/N)

    Over N pushes that is a step of Nesterov with the mean of them. ``torch.optim.SGD(…, nesterov=True)`` is
    the same as N = 1.

    Args:
        params: as of any optimizer.
        lr: ε.
        momentum: β.
        buffer: N, the number of replicas as a rule.
        spread: c; 0 applies all momentum at once, 1/N in equal parts.

    Raises:
        RecipeError: a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.7,
        momentum: float = 0.9,
        buffer: int = 1,
        spread: float = 0.0,
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or buffer < 1 or not 0 <= spread <= 1 / buffer:
            raise RecipeError(
                "delayed Nesterov has lr ≥ 0, 0 ≤ momentum < 1, buffer ≥ 1, 0 ≤ spread ≤ 1/buffer; got "
                f"lr={lr}, momentum={momentum}, buffer={buffer}, spread={spread}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "buffer": buffer, "spread": spread})

    def _apply(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        lr, momentum, buffer, spread = (group[name] for name in ("lr", "momentum", "buffer", "spread"))
        state = self.state[parameter]
        if not state:
            state["pushes"] = 0
            state["momentum"] = torch.zeros_like(parameter)
            state["sum"] = torch.zeros_like(parameter)
        state["pushes"] += 1
        state["sum"].add_(gradient)
        share = spread
        if state["pushes"] % buffer == 0:
            state["momentum"].mul_(momentum).add_(state["sum"], alpha=1 / buffer)
            state["sum"].zero_()
            share = 1 - spread * buffer + spread
        parameter.add_(state["momentum"], alpha=-lr * share * momentum)
        parameter.add_(gradient, alpha=-lr / buffer)
