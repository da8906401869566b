"""Smaller pushes: bf16, or int8 with one scale per tensor; what was lost is added to the next push.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847), for each tensor::

    x ← gathered + e,    send q(x),    e ← x − q(x)

so that nothing is lost for good, only late.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from akkordeon.errors import RecipeError

__all__ = ["COMPRESSIONS", "Compressor", "Packed", "unpacked"]

COMPRESSIONS = (None, "bf16", "int8")

INT8_MAX = 127

Packed = tuple[tuple[Tensor | None, ...], tuple[float, ...] | None]
"""Tensors as they travel, and what to multiply each by if that is needed."""


class Compressor:
    """Packs what one replica's gate pushes, and remembers what packing lost.

    Args:
        kind: ``None`` sends tensors as they are; ``"bf16"`` or ``"int8"``.

    Raises:
        RecipeError: another kind.
    """

    def __init__(self, kind: str | None) -> None:
        if kind not in COMPRESSIONS:
            raise RecipeError(f"compression is None, 'bf16' or 'int8', got {kind!r}")
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
        packed = _as_bf16(wanted) if self._kind == "bf16" else _as_int8(wanted)
        self._errors = [
            None if x is None or sent is None else x - sent
            for x, sent in zip(wanted, unpacked(packed, wanted), strict=True)
        ]
        return packed


def unpacked(packed: Packed, like: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors that were meant, in the dtype of ``like`` and in memory that a receiver may write to.

    A tensor that travelled as it is stays the one it was: it belongs to the message.
    """
    tensors, scales = packed
    found: list[Tensor | None] = []
    for i, (tensor, model) in enumerate(zip(tensors, like, strict=True)):
        if tensor is None or model is None:
            found.append(None)
        elif scales is not None:
            found.append(tensor.to(model.dtype).mul_(scales[i]))
        else:
            found.append(tensor.to(model.dtype))
    return found


def _sum(tensor: Tensor | None, error: Tensor | None) -> Tensor | None:
    if tensor is None or error is None:
        return error if tensor is None else tensor
    return tensor + error


def _as_bf16(tensors: Sequence[Tensor | None]) -> Packed:
    return tuple(None if t is None else t.to(torch.bfloat16) for t in tensors), None


def _as_int8(tensors: Sequence[Tensor | None]) -> Packed:
    """Q = round(x / s) with s = max|x| / 127."""
    scales = tuple(0.0 if t is None or not t.numel() else t.abs().max().item() / INT8_MAX for t in tensors)
    whole = tuple(
        None if t is None else (t / (scale or 1.0)).round_().to(torch.int8)
        for t, scale in zip(tensors, scales, strict=True)
    )
    return whole, scales
