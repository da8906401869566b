"""Gradients through one graph, without what ``torch.autograd.grad`` asks again each time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gradients"]


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Vector-Jacobian products, as ``torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)``.

    Gates have compared forms already, and the second comparison costs as much as a small layer; so this
    calls the engine below ``torch.autograd.grad``.

    Args:
        outputs: tensors with a graph.
        inputs: leaves of it that require a gradient.
        seeds: one for each output, of its shape and dtype.

    Returns:
        One for each input, None where no output depends on it. The graph is freed.
    """
    if not outputs or not inputs:
        return [None] * len(inputs)
    engine = torch.autograd.Variable._execution_engine
    found: Sequence[Tensor | None] = engine.run_backward(
        tuple(outputs), tuple(seeds), False, False, tuple(inputs), True, accumulate_grad=False
    )
    return found
