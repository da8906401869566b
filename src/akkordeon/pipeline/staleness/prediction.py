"""A rule that computes on the weights which are expected by the time the gradient comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from akkordeon.core.checks import is_number
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.staleness.rule import Rule

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction(Rule):
    """Weight prediction: the latest update, made once more for each that will come before the gradient does.

    ::

        ŵ = w(t) + f(s)·(w(t) − w(t−1))      s updates ahead

        f(s) = s                             SpecTrain (Chen et al. 2018, arXiv:1809.02839): its s·η·v; with
                                             Adam that is XPipe (Guan et al. 2019, arXiv:1911.04610)
        f(s) = (γ − γ^(s+1)) / (1 − γ)       with ``decay`` γ, that of the momentum: where its steps lead if
                                             no gradient comes (MSNAG)

    Forward and backward are on ŵ, so that the gradient is one of a function that existed; the update is of w.
    Taken from the weights and not from what an optimizer keeps, it is the same for every optimizer, and has
    weight decay and schedules in it. s is exact where batches come back in the order they went. With nothing
    ahead ŵ is w.

    A gate keeps one version of its weights more, and one for each batch in flight.

    Args:
        decay: γ, at least 0 and below 1; None for as many whole updates as are ahead.

    Raises:
        RecipeError: it is not.
    """

    decay: float | None = None
    uses_old_weights: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the number."""
        if self.decay is not None and not (is_number(self.decay) and 0 <= self.decay < 1):
            raise RecipeError(f"the decay of prediction is at least 0 and below 1, got {self.decay!r}")

    def ahead(self, now: Sequence[Tensor], before: Sequence[Tensor], updates: int) -> Sequence[Tensor]:
        """The weights expected after so many more updates; see :class:`Rule`."""
        factor = float(updates)
        if self.decay is not None:
            factor = (self.decay - self.decay ** (updates + 1)) / (1 - self.decay)
        with torch.no_grad():
            return [
                torch.lerp(was, weight, 1 + factor) if weight.requires_grad else weight
                for was, weight in zip(before, now, strict=True)
            ]


NAMED = {"prediction": Prediction(), "prediction-decayed": Prediction(decay=0.9)}
