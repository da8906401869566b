"""An optimizer whose momentum has late gradients where they would have been, had they come in order.

K = 2, and a gradient g of bucket 1 that comes in bucket 3:

    bucket          1         2          3          4
    in order       −ηg      −ηβg       −ηβ²g      −ηβ³g …
    here                               −η(1 + β + β²)g, and β²g in the momentum: from here on the same
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from akkordeon.core.checks import is_number
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.optimizers.by_parameter import ByParameter
from akkordeon.pipeline.optimizers.composed import all_within

__all__ = ["OrderedMomentum", "ordered_within"]


class OrderedMomentum(ByParameter):
    """OrMo: momentum by the order of gradients, not of their coming (Shi et al. 2024, arXiv:2407.19234).

    With K workers, K gradients are a step of momentum: a bucket. A gradient of the weights after i updates is
    of bucket ⌈i/K⌉. If it comes as update t, it is d = ⌈t/K⌉ − ⌈i/K⌉ buckets late, and is given the momentum
    that is left of it, and all the way that it missed::

        where ⌈t/K⌉ begins:     u ← β·u,   w ← w − η·u
        u ← u + β^d·g
        w ← w − η·(1 + β + … + β^d)·g

    So when all have come, in whatever order, weights and momentum are those of momentum SGD with the sums of
    the buckets. Without delay and with K = 1 it is ``torch.optim.SGD(…, momentum=β)``, bit for bit; with more
    workers momentum moves the weights with every K-th gradient only.

    Shards and gates say how late the gradient of the next step is. Of an update of several gradients that is
    the latest's. A parameter without a gradient stays as it is.

    Args:
        params: as of any optimizer.
        lr: η.
        momentum: β.
        workers: K, the gradients that are on their way at once: of as many replicas, or batches in flight.

    Attributes:
        staleness: updates since the weights that the next gradient was taken at; 0 in a plain loop.

    Raises:
        RecipeError: a number out of range.
    """

    staleness: int = 0

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.9, workers: int = 1
    ) -> None:
        if not (is_number(lr) and lr >= 0 and is_number(momentum) and 0 <= momentum < 1):
            raise RecipeError(
                f"ordered momentum has lr ≥ 0 and 0 ≤ momentum < 1; got lr={lr}, momentum={momentum}"
            )
        if type(workers) is not int or workers < 1:
            raise RecipeError(
                f"the workers of ordered momentum are a whole number, at least 1; got {workers!r}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "workers": workers})

    def _apply(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        lr, momentum, workers = group["lr"], group["momentum"], group["workers"]
        state = self.state[parameter]
        if not state:
            state["updates"] = 0
            state["momentum"] = torch.zeros_like(parameter)
        update, ordered = state["updates"], state["momentum"]
        state["updates"] = update + 1
        late = _bucket(update, workers) - _bucket(update - self.staleness, workers)
        left = momentum**late
        if update and _bucket(update, workers) > _bucket(update - 1, workers):
            ordered.mul_(momentum).add_(gradient, alpha=left)
            parameter.add_(ordered, alpha=-lr)
        else:
            ordered.add_(gradient, alpha=left)
            parameter.add_(gradient, alpha=-lr * left)
        if late:
            parameter.add_(gradient, alpha=-lr * (1 - left) / (1 - momentum))


def ordered_within(optimizer: Optimizer) -> list[OrderedMomentum]:
    """Those in an optimizer that are to be told how late a gradient is."""
    return [each for each in all_within(optimizer) if isinstance(each, OrderedMomentum)]


def _bucket(update: int, workers: int) -> int:
    """⌈update / workers⌉."""
    return -(-update // workers)
