"""A rule that keeps no weights, and has backwards on what those of the forward are guessed to have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from akkordeon.core.checks import is_number, require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.staleness.rule import Gradients, Rule
from akkordeon.pipeline.staleness.smaller_steps import AnnealedSteps

__all__ = ["DiscrepancyCorrection"]


@dataclass(frozen=True)
class DiscrepancyCorrection(Rule):
    """PipeMare's T2 (Yang et al. 2019, arXiv:1910.05124): weights as they were, guessed from how they move.

    ::

        δ ← γ·δ + (1 − γ)·(w − w before),     γ = D^(1/τ)       with each update
        u = w − τ·δ                                             the backward is on u, the update is of w

    As with :class:`Latest` nothing is kept of a batch but its activations, and its gradient is that of no
    function; but u is near the weights that these came from, the nearer the steadier weights move. δ is a
    mean over about as many updates as a gradient is late: after τ updates D is left of what it was. Of an
    update of several gradients γ goes by the last one's τ. With τ = 0 the backward is on w.

    A gate keeps one number more for each weight, however many batches are in flight, and a copy of its
    weights for as long as a backward, or an update, takes.

    Args:
        decay: D; the paper's is 0.5 for images and 0.1 for translation.
        annealed: updates over which steps grow, as those of :class:`AnnealedSteps`: T1 and T2 are PipeMare;
            None for whole steps from the start.

    Raises:
        RecipeError: a number is out of range.
    """

    decay: float = 0.5
    annealed: int | None = None
    keeps_weights: ClassVar[bool] = False
    uses_old_weights: ClassVar[bool] = False
    looks_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (is_number(self.decay) and 0 <= self.decay < 1):
            raise RecipeError(
                f"the decay of discrepancy correction is at least 0 and below 1, got {self.decay!r}"
            )
        require_whole("the updates over which steps grow", self.annealed, optional=True)

    def initial(self, parameters: Sequence[Tensor]) -> _Velocity:
        """δ, which begins at zero."""
        return _Velocity([torch.zeros_like(weight) for weight in parameters])

    def tensors_of(self, state: _Velocity) -> Sequence[Tensor]:
        """δ of each weight."""
        return state.of_weights

    def correct(
        self, gradients: Gradients, now: Sequence[Tensor], then: Sequence[Tensor], staleness: int, state: Any
    ) -> Gradients:
        """Gradients as they are; how late they are says how fast δ follows. See :class:`Rule`."""
        state.staleness = staleness
        return gradients

    def lr_factor(self, staleness: int, updates: int) -> float:
        """That of T1, where it is asked for; see :class:`Rule`."""
        return 1.0 if self.annealed is None else AnnealedSteps(self.annealed).lr_factor(staleness, updates)

    def behind(self, now: Sequence[Tensor], staleness: int, state: Any) -> Sequence[Tensor]:
        """The weights of so many updates ago, as guessed; see :class:`Rule`."""
        with torch.no_grad():
            return [
                torch.sub(weight, velocity, alpha=staleness) if weight.requires_grad else weight
                for weight, velocity in zip(now, state.of_weights, strict=True)
            ]

    def follow(self, before: Sequence[Tensor], now: Sequence[Tensor], state: Any) -> None:
        """Have δ follow an update; see :class:`Rule`."""
        share = 1 - self.decay ** (1 / state.staleness) if state.staleness else 1.0
        with torch.no_grad():
            for was, weight, velocity in zip(before, now, state.of_weights, strict=True):
                if weight.requires_grad:
                    velocity.lerp_(weight - was, share)


@dataclass
class _Velocity:
    """δ of each weight, and how late the gradient was that came last."""

    of_weights: list[Tensor]
    staleness: int = 0


NAMED = {"discrepancy": DiscrepancyCorrection(), "pipemare": DiscrepancyCorrection(annealed=1000)}
