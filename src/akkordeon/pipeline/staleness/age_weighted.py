"""A rule that weighs what comes by its age, as servers of federated learning do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from akkordeon.core.checks import is_number
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.staleness.rule import Gradients, Rule

__all__ = ["AgeWeighted"]


@dataclass(frozen=True)
class AgeWeighted(Rule):
    """Steps weighted by age: FedAsync's polynomial (Xie et al. 2019, arXiv:1903.03934).

    ::

        g / (1 + τ)^a

    Meant for shards: with ``push="differences"`` it is the outer step that is weighted. With a = ½ that is
    FedBuff's (Nguyen et al. 2021, arXiv:2106.06639). FedAsync itself draws the weights towards those that
    came, ``w − α(w − w_came)``; here, as in FedBuff, they go by how far the others have come since they were
    lent: ``w − α(w_lent − w_came)``, which undoes nothing of what others did meanwhile.

    What comes is scaled and not the learning rate, so momentum keeps what it has. An optimizer that divides
    by the size of past gradients (Adam, Adagrad) goes by how τ changes, not by how large it is.

    Args:
        power: a; 0 weighs all alike, 1 is one update later than :class:`InverseStaleness`.

    Raises:
        RecipeError: it is no number of at least 0.
    """

    power: float = 0.5
    uses_old_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number."""
        if not (is_number(self.power) and self.power >= 0):
            raise RecipeError(f"the power of age weights is at least 0, got {self.power!r}")

    def correct(
        self, gradients: Gradients, now: Sequence[Tensor], then: Sequence[Tensor], staleness: int, state: Any
    ) -> Gradients:
        """Gradients scaled down by their age; see :class:`Rule`."""
        if not staleness:
            return gradients
        weight = (1 + staleness) ** -self.power
        return [None if gradient is None else gradient * weight for gradient in gradients]


NAMED = {"age-weighted": AgeWeighted()}
