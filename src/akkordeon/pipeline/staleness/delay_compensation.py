"""A rule that moves a stale gradient to where the weights are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from akkordeon.core.checks import is_number, require_above
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.staleness.rule import Gradients, Rule

__all__ = ["DelayCompensation"]

BLOCK = 1 << 15
"""Elements worked on at a time: few enough that all passes over a block stay in a core's own cache."""


@dataclass(frozen=True)
class DelayCompensation(Rule):
    """DC-ASGD (Zheng et al. 2017, arXiv:1609.08326) with the stash as the old weights.

    A first-order Taylor step from the old weights to the new, with λ·g⊙g for the Hessian's diagonal::

        constant    g + λ0 · g⊙g⊙(w − w_old)
        adaptive    g + λ0 / √(MS + ε) ⊙ g⊙g⊙(w − w_old),     MS ← m·MS + (1 − m)·g⊙g

    Args:
        variant: ``"constant"`` or ``"adaptive"``.
        strength: λ0; None is the paper's, 0.04 for constant and 2 for adaptive.
        decay: m of the adaptive variant.
        epsilon: ε of the adaptive variant.

    Raises:
        RecipeError: an unknown variant, or a number out of range.
    """

    variant: Literal["constant", "adaptive"] = "adaptive"
    strength: float | None = None
    decay: float = 0.95
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        """Check what a typing error would otherwise turn into silent nonsense."""
        if self.variant not in ("constant", "adaptive"):
            raise RecipeError(f"delay compensation is 'constant' or 'adaptive', got {self.variant!r}")
        if self.strength is not None and not (is_number(self.strength) and self.strength >= 0):
            raise RecipeError(f"the strength of delay compensation is at least 0, got {self.strength!r}")
        if not (is_number(self.decay) and 0 <= self.decay < 1):
            raise RecipeError(f"the decay of delay compensation is in [0, 1), got {self.decay!r}")
        require_above("the epsilon of delay compensation", self.epsilon)

    @property
    def strength_used(self) -> float:
        """λ0, the paper's unless one was given."""
        if self.strength is not None:
            return self.strength
        return 2.0 if self.variant == "adaptive" else 0.04

    def initial(self, parameters: Sequence[Tensor]) -> _Moments | None:
        """Mean squares of the gradients, starting at zero, for the adaptive variant."""
        if self.variant == "constant":
            return None
        return _Moments([torch.zeros_like(p, memory_format=torch.contiguous_format) for p in parameters])

    def tensors_of(self, state: _Moments | None) -> Sequence[Tensor]:
        """The mean squares, where there are any."""
        return () if state is None else state.squares

    def correct(
        self, gradients: Gradients, now: Sequence[Tensor], then: Sequence[Tensor], staleness: int, state: Any
    ) -> Gradients:
        """Gradients moved from the old weights towards the new; see :class:`Rule`."""
        corrected: Gradients = []
        for i, gradient in enumerate(gradients):
            if gradient is None:
                corrected.append(None)
            elif gradient.is_sparse:
                raise RecipeError("delay compensation needs dense gradients; make the embedding sparse=False")
            elif self.variant == "constant":
                corrected.append(self._constant(gradient, now[i], then[i], staleness))
            else:
                corrected.append(self._adaptive(gradient, now[i], then[i], staleness, state.squares[i]))
        return corrected

    def _constant(self, gradient: Tensor, now: Tensor, then: Tensor, staleness: int) -> Tensor:
        if staleness == 0:
            return gradient
        return torch.addcmul(gradient, gradient * gradient, now - then, value=self.strength_used)

    def _adaptive(
        self, gradient: Tensor, now: Tensor, then: Tensor, staleness: int, squares: Tensor
    ) -> Tensor:
        corrected = torch.empty_like(squares) if staleness else gradient
        g_all, now_all, then_all = (t.detach().reshape(-1) for t in (gradient, now, then))
        out_all, squares_all = corrected.reshape(-1), squares.view(-1)
        for start in range(0, g_all.numel(), BLOCK):
            block = slice(start, start + BLOCK)
            g, ms = g_all[block], squares_all[block]
            g2 = g * g
            ms.lerp_(g2, 1 - self.decay)
            if staleness:
                root = (ms + self.epsilon).sqrt_()
                moved = (now_all[block] - then_all[block]).mul_(g2)
                torch.addcdiv(g, moved, root, value=self.strength_used, out=out_all[block])
        return corrected


@dataclass
class _Moments:
    """State of the adaptive variant: MS, one tensor per parameter."""

    squares: list[Tensor] = field(default_factory=list)


NAMED = {"dc-adaptive": DelayCompensation("adaptive"), "dc-constant": DelayCompensation("constant")}
