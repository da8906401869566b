"""What float32 activations and gradients are narrowed to on their way between hosts.

16-bit floats are rounded, number by number. int8 has a scale for each sample x, ahead of its numbers::

    s = max|x| / 127    sent: s (4 bytes), q = round(x / s)    arrives: q·s, wrong by s/2 at most

Samples have scales of their own since their gradients differ by orders of magnitude. Nothing is remembered
between batches, as fewer bits would need (AQ-SGD, arXiv:2206.01299), and rounding to the nearest draws no
random numbers: equal seeds give equal runs. Where something of a sample is NaN or infinite, all of it arrives
as such, and whoever receives it refuses the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import map_tensors, nbytes

__all__ = ["carried", "narrowed", "require_wire_dtype", "widened"]

WIRE_DTYPES = (None, torch.bfloat16, torch.float16, torch.int8)

INT8_MAX = 127
SCALE_BYTES = 4
SAMPLE_MIN = 4
"""Numbers in a sample from which on int8, its scale included, is at most half of float32."""


def require_wire_dtype(wire_dtype: Any) -> torch.dtype | None:
    """The dtype, if something can be narrowed to it.

    Raises:
        RecipeError: it is none of those.
    """
    if wire_dtype not in WIRE_DTYPES:
        raise RecipeError(
            f"wire_dtype is None, torch.bfloat16, torch.float16 or torch.int8, got {wire_dtype!r}"
        )
    return wire_dtype  # type: ignore[no-any-return]  # one of those above


def narrowed(tensor: Tensor, wire_dtype: torch.dtype | None) -> Tensor:
    """What is sent of a dense tensor: itself, if it is not of float32, or too small to gain by int8."""
    if wire_dtype is None or tensor.dtype is not torch.float32:
        return tensor
    if wire_dtype is not torch.int8:
        return tensor.to(wire_dtype)
    return _rounded(tensor) if tensor.dim() > 1 and tensor[:1].numel() >= SAMPLE_MIN else tensor


def widened(sent: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of this shape and dtype that was narrowed to what is sent, in any shape."""
    if sent.dtype is torch.int8 and dtype is torch.float32:
        rows = sent.reshape(shape[0], -1)
        scales = rows[:, :SCALE_BYTES].contiguous().view(torch.float32)
        return (rows[:, SCALE_BYTES:] * scales).reshape(shape)
    return sent.reshape(shape).to(dtype)


def _rounded(tensor: Tensor) -> Tensor:
    """(samples, 4 + numbers of each) bytes: the scale, and the numbers in units of it."""
    samples = tensor.flatten(1)
    scales = samples.abs().amax(1, keepdim=True) / INT8_MAX
    whole = (samples / scales.where(scales != 0, 1.0)).round_().clamp_(-INT8_MAX, INT8_MAX)
    return torch.cat([scales.view(torch.int8), whole.to(torch.int8)], 1)


def carried(message: Any, wire_dtype: torch.dtype | None) -> tuple[Any, int]:
    """A forward or backward as it arrives where its tensors are narrowed on the way, and the bytes sent."""
    sizes: list[int] = []

    def arrives(tensor: Tensor) -> Tensor:
        sent = narrowed(tensor.detach(), wire_dtype) if tensor.layout is torch.strided else tensor
        sizes.append(nbytes(sent))
        if sent.dtype is tensor.dtype:
            return tensor
        return widened(sent, tuple(tensor.shape), tensor.dtype).requires_grad_(_is_asked_for(tensor))

    payload = map_tensors(arrives, message.payload)
    return replace(message, payload=payload), sum(sizes)


def _is_asked_for(tensor: Tensor) -> bool:
    """Whether whoever sends a tensor asks for its gradient."""
    return tensor.requires_grad and tensor.is_leaf
