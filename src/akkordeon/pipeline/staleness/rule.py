"""What a rule for stale gradients is.

A gate that learns from a batch τ updates after that batch went forward holds a gradient that belongs
to weights it no longer has. A rule says five things about it:

- ``keeps_weights``: whether the gate keeps the weights a forward used until its backward came
  (weight stashing, PipeDream, arXiv:1806.03377), so that the gradient is one of a function that existed;
- :meth:`Rule.correct`: what the optimizer gets instead of the raw gradient;
- :meth:`Rule.lr_factor`: how much of its step the optimizer makes;
- :meth:`Rule.ahead`: on which weights the forward is, where not on the latest;
- :meth:`Rule.behind`: on which weights the backward is, where those of the forward are not kept.

Rules never write to what they are given: a gradient may be the very tensor that was sent on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

__all__ = ["Gradients", "Rule"]

Gradients = list[Tensor | None]


class Rule:
    """What to do with a gradient that is τ updates old."""

    keeps_weights: ClassVar[bool] = True
    uses_old_weights: ClassVar[bool] = True
    """Whether :meth:`correct` looks at ``then``, so that it must be what the gradients were taken at."""

    looks_ahead: ClassVar[bool] = False
    """Whether forwards are on what :meth:`ahead` says, and not on the latest weights."""

    looks_back: ClassVar[bool] = False
    """Whether backwards are on what :meth:`behind` says; for rules that keep no weights."""

    is_vertical: ClassVar[bool] = False
    """Whether a batch is computed on one version of the whole row; see :class:`VerticalSync`."""

    def initial(self, parameters: Sequence[Tensor]) -> Any:
        """The rule's own state for these parameters."""
        return None

    def tensors_of(self, state: Any) -> Sequence[Tensor]:
        """The tensors of such a state, one for each parameter; none where it has none."""
        return ()

    def correct(
        self, gradients: Gradients, now: Sequence[Tensor], then: Sequence[Tensor], staleness: int, state: Any
    ) -> Gradients:
        """The gradients the optimizer gets.

        Args:
            gradients: one for each parameter, of its shape; None where the loss does not depend on it.
            now: the weights about to be updated.
            then: the weights the gradients were computed at (equal to ``now`` when staleness is 0).
            staleness: τ, the number of updates between ``then`` and ``now``.
            state: what :meth:`initial` gave; the only argument a rule may change.
        """
        return gradients

    def ahead(self, now: Sequence[Tensor], before: Sequence[Tensor], updates: int) -> Sequence[Tensor]:
        """The weights that a forward is on, for a rule that looks ahead.

        Args:
            now: the latest weights.
            before: those of one update earlier.
            updates: that will come before the gradient of the batch does; at least 1.
        """
        return now

    def behind(self, now: Sequence[Tensor], staleness: int, state: Any) -> Sequence[Tensor]:
        """The weights that a late backward is on, for a rule that looks back.

        Args:
            now: the latest weights.
            staleness: τ, the number of updates since the forward; at least 1.
            state: what :meth:`initial` gave.
        """
        return now

    def follow(self, before: Sequence[Tensor], now: Sequence[Tensor], state: Any) -> None:
        """Take note of an update, for a rule that looks back.

        Args:
            before: the weights before it.
            now: those after it.
            state: what :meth:`initial` gave, and this may change.
        """

    def lr_factor(self, staleness: int, updates: int) -> float:
        """What the learning rate is multiplied by for one update; of several gradients the smallest counts.

        Args:
            staleness: τ of its gradient.
            updates: that were made before.
        """
        return 1.0
