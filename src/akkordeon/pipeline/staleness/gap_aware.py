"""A rule that learns the less from a gradient the further the weights have moved since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from akkordeon.core.checks import is_number, require_above
from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import is_floating
from akkordeon.pipeline.staleness.rule import Gradients, Rule

__all__ = ["GapAware"]

BLOCK = 1 << 15
"""Elements worked on at a time: few enough that all passes over a block stay in a core's own cache."""


@dataclass(frozen=True)
class GapAware(Rule):
    """Gap-Aware (Barkai et al. 2019, arXiv:1909.10802): by weight, and by distance instead of updates.

    ::

        g / (1 + |w − w_then| / C),     C = √MS + ε,     MS ← m·MS + (1 − m)·Δw⊙Δw

    C is how far a weight usually moves in an update: the paper's ``η_max·√EMA(step²)``, taken from the
    weights themselves, so that it holds for every optimizer and follows the learning rate down. MS begins
    with the first update. With nothing in between the gradient stays as it is.

    A gate keeps two numbers more for each weight: MS, and the weight before.

    Args:
        decay: m.
        epsilon: ε.

    Raises:
        RecipeError: a number is out of range.
    """

    decay: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (is_number(self.decay) and 0 <= self.decay < 1):
            raise RecipeError(f"the decay of Gap-Aware is at least 0 and below 1, got {self.decay!r}")
        require_above("the epsilon of Gap-Aware", self.epsilon)

    def initial(self, parameters: Sequence[Tensor]) -> _Moved:
        """MS and the weight before, of each parameter."""
        return _Moved([torch.stack((torch.zeros_like(weight), weight.detach())) for weight in parameters])

    def tensors_of(self, state: _Moved) -> Sequence[Tensor]:
        """Both in one tensor, of shape (2, …)."""
        return state.kept

    def correct(
        self, gradients: Gradients, now: Sequence[Tensor], then: Sequence[Tensor], staleness: int, state: Any
    ) -> Gradients:
        """Gradients divided by how far the weights have gone; see :class:`Rule`."""
        corrected: Gradients = []
        for i, gradient in enumerate(gradients):
            if gradient is not None and gradient.is_sparse:
                raise RecipeError("Gap-Aware needs dense gradients; make the embedding sparse=False")
            if not is_floating(now[i]):  # it never moves, and has no gradient
                corrected.append(gradient)
                continue
            kept = state.kept[i]
            new = None if gradient is None or not staleness else torch.empty_like(kept[0])
            self._work_through(gradient, now[i], then[i], kept, new, self._share(state, i, now[i]))
            corrected.append(gradient if new is None else new)
        return corrected

    def _share(self, state: _Moved, i: int, now: Tensor) -> float:
        """Of the update before in MS: none where a gradient was corrected since, which has taken it in."""
        if not state.is_new(i, now):
            return 0.0
        return 1 - self.decay if state.has_begun(i) else 1.0

    def _work_through(
        self,
        gradient: Tensor | None,
        now: Tensor,
        then: Tensor,
        kept: Tensor,
        out: Tensor | None,
        share: float,
    ) -> None:
        """Take in the update before with its share, and divide the gradient into ``out``, if there is one."""
        squares_all, before_all = kept[0].view(-1), kept[1].view(-1)
        now_all, then_all = now.detach().reshape(-1), then.detach().reshape(-1)
        for start in range(0, now_all.numel(), BLOCK):
            block = slice(start, start + BLOCK)
            w, squares, before = now_all[block], squares_all[block], before_all[block]
            step = w - before
            before.copy_(w)
            squares.lerp_(step.mul_(step), share)
            if out is not None and gradient is not None:
                usual = squares.sqrt().add_(self.epsilon)
                gap = (w - then_all[block]).abs_().div_(usual).add_(1.0)
                torch.div(gradient.reshape(-1)[block], gap, out=out.view(-1)[block])


class _Moved:
    """How far weights have moved: for each parameter MS and the weight before."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept
        self._begun = [False] * len(kept)
        self._seen: list[ReferenceType[Tensor] | None] = [None] * len(kept)

    def is_new(self, i: int, now: Tensor) -> bool:
        """Whether this version of the parameter was not seen yet: several gradients may be of one update."""
        seen, self._seen[i] = self._seen[i], ref(now)
        if seen is None:  # after a checkpoint the numbers tell
            return not torch.equal(self.kept[i][1], now)
        return seen() is not now

    def has_begun(self, i: int) -> bool:
        """Whether an update of the parameter has been seen; after a checkpoint that is in MS."""
        if not self._begun[i]:
            self._begun[i] = bool(self.kept[i][0].any())
        return self._begun[i]


NAMED = {"gap-aware": GapAware()}
