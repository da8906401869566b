"""Rules that learn the less from a gradient the staler it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from akkordeon.core.checks import require_whole
from akkordeon.pipeline.staleness.rule import Gradients, Rule

__all__ = ["AnnealedSteps", "DelayAdaptive", "InverseStaleness"]


@dataclass(frozen=True)
class InverseStaleness(Rule):
    """Staleness-aware SGD (Zhang et al. 2015, arXiv:1511.05950): a gradient counts the less the later it is.

    ::

        g / max(1, τ)

    The gradient is scaled and not the learning rate, so momentum keeps what it has. An optimizer that
    divides by the size of past gradients (Adam, Adagrad) goes by how τ changes, not by how large it is.
    """

    uses_old_weights: ClassVar[bool] = False

    def correct(
        self, gradients: Gradients, now: Sequence[Tensor], then: Sequence[Tensor], staleness: int, state: Any
    ) -> Gradients:
        """Gradients divided by their staleness; see :class:`Rule`."""
        if staleness <= 1:
            return gradients
        return [None if gradient is None else gradient / staleness for gradient in gradients]


@dataclass(frozen=True)
class DelayAdaptive(Rule):
    """Delay-adaptive steps (Mishchenko et al. 2022, arXiv:2206.07638): smaller beyond what is usual.

    ::

        g · M / max(M, τ)

    With M = 1 that is :class:`InverseStaleness`. As there, the gradient is scaled.

    Args:
        usual: M, in updates; the number of workers, or of batches in flight.

    Raises:
        RecipeError: it is no whole number of at least 1.
    """

    usual: int = 4
    uses_old_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number."""
        require_whole("the staleness up to which steps are whole", self.usual)

    def correct(
        self, gradients: Gradients, now: Sequence[Tensor], then: Sequence[Tensor], staleness: int, state: Any
    ) -> Gradients:
        """Gradients scaled down; see :class:`Rule`."""
        if staleness <= self.usual:
            return gradients
        factor = self.usual / staleness
        return [None if gradient is None else gradient * factor for gradient in gradients]


@dataclass(frozen=True)
class AnnealedSteps(Rule):
    """PipeMare's T1 (Yang et al. 2019, arXiv:1910.05124): small steps at first where gradients are late.

    ::

        η / τ^p,     p = 1 − min(k / K, 1)     in update k, from 0

    Early in training weights move fast, and late gradients do most harm; from update K on steps are whole.
    The learning rate is scaled and not the gradient, so optimizers that divide by the size of gradients go by
    it as well.

    Args:
        updates: K.

    Raises:
        RecipeError: it is no whole number of at least 1.
    """

    updates: int = 1000
    uses_old_weights: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the number."""
        require_whole("the updates over which steps grow", self.updates)

    def lr_factor(self, staleness: int, updates: int) -> float:
        """τ^-p; see :class:`Rule`."""
        return float(max(1, staleness) ** -(1 - min(updates / self.updates, 1)))


NAMED = {"annealed": AnnealedSteps(), "delay-adaptive": DelayAdaptive(), "inverse": InverseStaleness()}
