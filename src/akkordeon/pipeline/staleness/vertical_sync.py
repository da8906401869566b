"""A rule that has one version of the weights for a batch, through the whole row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from akkordeon.pipeline.staleness.rule import Rule

__all__ = ["VerticalSync"]


@dataclass(frozen=True)
class VerticalSync(Rule):
    """PipeDream's vertical sync (Harlap et al. 2018, arXiv:1806.03377): all gates as old as the first one.

    ::

        w(t+1) = w(t) − η ∇f(w(t−τ))            with the same τ at every gate; with Stash a τ for each

    A gradient is then that of the whole row at one point where it has been, and gates further down, which
    would have had newer weights, keep the older ones for it. The first gate with this rule says which version
    a batch is computed on, and those after it that have it keep to that. With τ = 0 it is :class:`Stash`, bit
    for bit.

    A gate keeps the versions of its weights since the oldest that a batch may still need: with one sentinel
    no more than batches in flight.
    """

    uses_old_weights: ClassVar[bool] = False
    is_vertical: ClassVar[bool] = True


NAMED = {"vertical": VerticalSync()}
