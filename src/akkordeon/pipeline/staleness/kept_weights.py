"""Rules that leave gradients as they are, and keep the weights of their forwards or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from akkordeon.pipeline.staleness.rule import Rule

__all__ = ["Latest", "Stash"]


@dataclass(frozen=True)
class Stash(Rule):
    """Keep the weights of every batch in flight; the gradient is exact, only late. The default."""

    uses_old_weights: ClassVar[bool] = False


@dataclass(frozen=True)
class Latest(Rule):
    """Keep nothing: backward runs on whatever the weights are by then.

    The result is the gradient of no function at all, as the activations are old and the weights new.
    It is what the first Akkordeon did and is here for comparison; it diverges early.
    """

    keeps_weights: ClassVar[bool] = False
    uses_old_weights: ClassVar[bool] = False


NAMED = {"latest": Latest(), "stash": Stash()}
