"""A moving average of weights (EMA), renewed with every update.

    first update    average = weights
    later ones      average = average + (1 - decay) * (weights - average)

This is what ``torch.optim.swa_utils.AveragedModel`` does with ``get_ema_multi_avg_fn(decay)``, to the bit; as
there, buffers are not averaged: who looks at the average has the buffers of the moment beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Average"]


class Average:
    """The average of some weights.

    Args:
        decay: the share of it that stays with an update, at least 0 and below 1.
        weights: as they are before the first update; it has their dtypes and devices.
    """

    def __init__(self, decay: float, weights: Sequence[Tensor]) -> None:
        self._mix = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._values = [weight.detach().clone() for weight in weights]
        self._updates = 0
        self._is_held = False
        alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, weight in enumerate(weights):
            alike.setdefault((weight.device, weight.dtype), []).append(i)
        self._alike = list(alike.values())  # PyTorch mixes many at once where these agree

    def add(self, weights: Sequence[Tensor]) -> None:
        """Take in the weights of an update."""
        if self._is_held:
            self._values, self._is_held = [value.clone() for value in self._values], False
        for places in self._alike:
            values, news = [self._values[i] for i in places], [weights[i].detach() for i in places]
            if self._updates == 0:
                for value, new in zip(values, news, strict=True):
                    value.copy_(new)
            else:
                self._mix(values, news, self._updates)
        self._updates += 1

    def pin(self) -> list[Tensor]:
        """The average as it is now, which no later update writes to."""
        self._is_held = True
        return [value.detach() for value in self._values]

    def state(self, names: Sequence[str]) -> dict[str, Any]:
        """It as plain data, by the names of the weights; no later update writes to it."""
        return {"weights": dict(zip(names, self.pin(), strict=True)), "updates": self._updates}

    def load(self, state: Mapping[str, Any], names: Sequence[str]) -> None:
        """Go on from such a state, which stays as it is; what it does not name is as it was made."""
        for name, value in zip(names, self._values, strict=True):
            if name in state["weights"]:
                value.copy_(state["weights"][name])
        self._updates = state["updates"]
