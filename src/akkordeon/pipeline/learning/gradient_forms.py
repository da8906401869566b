"""What gradients of payloads and weights have to be: of the outputs' form, and in memory of their own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from akkordeon.core.payload import Payload, memory, tensors

__all__ = ["differentiable", "own", "requires_grad", "same_storage"]


def requires_grad(y: Payload) -> bool:
    """Whether any tensor of a payload does."""
    return y.requires_grad if isinstance(y, Tensor) else any(tensor.requires_grad for tensor in tensors(y))


def same_storage(gradient: Payload | None, output: Payload) -> bool:
    """Whether the tensors of a gradient lie where those of the output do, and are laid out alike."""
    return gradient is None or all(
        g is None or o is None or (g.device == o.device and g.layout == o.layout)
        for g, o in zip(tensors(gradient), tensors(output), strict=False)
    )


def differentiable(y: Payload | None, gradient: Payload | None) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that depend on anything and have a gradient, and those gradients; their forms agree."""
    if gradient is None or y is None:
        return [], []
    if isinstance(gradient, Tensor):
        return ([y], [gradient]) if y.requires_grad else ([], [])  # type: ignore[union-attr,list-item]
    outputs: list[Tensor] = []
    seeds: list[Tensor] = []
    for name, part in gradient.items() if isinstance(gradient, dict) else enumerate(gradient):
        some, theirs = differentiable(y[name], part)
        outputs += some
        seeds += theirs
    return outputs, seeds


def own(gradients: Iterable[Tensor | None], like: Iterable[Tensor], taken: set[int]) -> list[Tensor | None]:
    """The gradients in memory of their own and laid out like the weights, free to be worked on in place.

    For ``x + p`` the gradient of the parameter *is* the message to the gate before; for ``p + q`` it is
    one tensor twice. ``taken`` has the memory that is not ours, and grows.
    """
    own: list[Tensor | None] = []
    for gradient, weight in zip(gradients, like, strict=True):
        if gradient is not None and not gradient.is_sparse:
            where = memory(gradient)
            if where in taken or gradient.stride() != weight.stride():
                gradient = torch.empty_like(weight, requires_grad=False).copy_(gradient)
                where = memory(gradient)
            taken.add(where)
        own.append(gradient)
    return own
