"""Groups of parameters as most people want them: matrices decay, and vectors do not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from akkordeon.core.checks import is_number
from akkordeon.core.errors import RecipeError

__all__ = ["decay_groups"]


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: weight decay for what has two dimensions or more, and none for the rest.

    Vectors are biases, and the scales of normalisations. There are always two groups, so that the layers of a
    checkpoint can go on in other gates::

        lambda params: torch.optim.AdamW(ak.decay_groups(params, 0.1), lr=1e-3)

    Args:
        parameters: as an optimizer function is given them.
        weight_decay: of the first group.

    Raises:
        RecipeError: the decay is no number of at least 0.
    """
    if not (is_number(weight_decay) and weight_decay >= 0):
        raise RecipeError(f"weight_decay is at least 0, got {weight_decay!r}")
    given = list(parameters)
    return [
        {"params": [p for p in given if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in given if p.dim() < 2], "weight_decay": 0.0},
    ]
