"""Tensors packed as bf16, or int8 with one scale per tensor; of pushes, what was lost is added to the next.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847), for each tensor::

    x ← gathered + e,    send q(x),    e ← x − q(x)

so that nothing is lost for good, only late. What is not finite is sent as it is, for the receiver to
refuse, and never remembered: e would not be finite from then on, nor any later push.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from akkordeon.core.payload import all_finite

__all__ = ["COMPRESSIONS", "Compressor", "Packed", "can_be_packed", "packed", "unpacked"]

COMPRESSIONS = (None, "bf16", "int8")

INT8_MAX = 127

SCALE_MIN = torch.finfo(torch.float32).tiny
"""Below it a scale may be zero where it is divided by; all of the tensor is then sent later."""

BF16_MAX = torch.finfo(torch.bfloat16).max

Packed = tuple[tuple[Tensor | None, ...], tuple[float, ...] | None]
"""Tensors as they travel, and what to multiply each by if that is needed."""


class Compressor:
    """Packs what one replica's gate pushes, and remembers what packing lost.

    Args:
        kind: of ``COMPRESSIONS``; None sends tensors as they are.
    """

    def __init__(self, kind: str | None) -> None:
        self._kind = kind
        self._errors: list[Tensor | None] = []

    def pack(self, gathered: Sequence[Tensor | None]) -> Packed:
        """Tensors as they are to travel; ``gathered`` is ours to keep."""
        if self._kind is None:
            return tuple(gathered), None
        if not self._errors:
            self._errors = [None] * len(gathered)
        dense = [None if t is None else t.to_dense() if t.is_sparse else t for t in gathered]
        wanted = [_sum(tensor, error) for tensor, error in zip(dense, self._errors, strict=True)]
        if not all_finite(wanted):
            return packed(dense, self._kind)
        sent = packed(wanted, self._kind)
        self._errors = [
            error if x is None or arrives is None else x - arrives
            for x, arrives, error in zip(wanted, unpacked(sent, wanted), self._errors, strict=True)
        ]
        return sent


def packed(tensors: Sequence[Tensor | None], kind: str) -> Packed:
    """Dense tensors as they are to travel: ``"bf16"`` or ``"int8"``."""
    return _as_bf16(tensors) if kind == "bf16" else _as_int8(tensors)


def can_be_packed(some: Packed, like: Sequence[Tensor]) -> bool:
    """Whether these can be what is packed of such tensors; their dtypes may be others."""
    tensors, scales = some
    if len(tensors) != len(like) or (scales is not None and len(scales) != len(like)):
        return False
    return all(
        t is None or (t.shape == model.shape and t.is_complex() == model.is_complex())
        for t, model in zip(tensors, like, strict=True)
    )


def unpacked(packed: Packed, like: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors that were meant, in the dtype of ``like`` and in memory that a receiver may write to.

    A tensor that travelled as it is stays the one it was: it belongs to the message.
    """
    tensors, scales = packed
    found: list[Tensor | None] = []
    for i, (tensor, model) in enumerate(zip(tensors, like, strict=True)):
        if tensor is None or model is None:
            found.append(None)
        elif tensor.dtype == torch.int8 and scales is not None:
            found.append(tensor.to(model.dtype).mul_(scales[i]))
        else:
            found.append(tensor.to(model.dtype))
    return found


def _sum(tensor: Tensor | None, error: Tensor | None) -> Tensor | None:
    """What is to be sent; a tensor that is missing stays missing, and what was lost of it waits."""
    return tensor if tensor is None or error is None else tensor + error


def _as_bf16(tensors: Sequence[Tensor | None]) -> Packed:
    """Complex numbers stay as they are: bfloat16 has none."""
    return tuple(t if t is None or t.is_complex() else _bf16(t) for t in tensors), None


def _bf16(tensor: Tensor) -> Tensor:
    """Rounded; finite numbers that are too large for bfloat16 become its largest."""
    rounded = tensor.to(torch.bfloat16)
    return torch.where(tensor.isfinite(), rounded.clamp(-BF16_MAX, BF16_MAX), rounded)


def _as_int8(tensors: Sequence[Tensor | None]) -> Packed:
    """Q = round(x / s) with s = max|x| / 127. Complex numbers stay as they are."""
    scales = tuple(map(_scale, tensors))
    whole = tuple(
        t if t is None or t.is_complex() else (t / (scale or 1.0)).round_().to(torch.int8)
        for t, scale in zip(tensors, scales, strict=True)
    )
    return whole, scales


def _scale(tensor: Tensor | None) -> float:
    if tensor is None or tensor.is_complex() or not tensor.numel():
        return 0.0
    limits, largest = torch.finfo(tensor.dtype), tensor.abs().max().item()
    if not math.isfinite(largest):
        return math.nan
    scale = min(largest, limits.max * (1 - limits.eps)) / INT8_MAX  # 127·s is finite, even rounded up
    return 0.0 if scale < SCALE_MIN else scale
