"""What travels between gates: a tensor, or a tuple or dict of tensors, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from akkordeon.errors import ProtocolError

__all__ = [
    "Payload",
    "all_finite",
    "form",
    "is_floating",
    "map_tensors",
    "memory",
    "nbytes",
    "same_form",
    "samples",
    "signature",
    "tensors",
]

Payload = Tensor | tuple[Tensor | None, ...] | dict[str, Tensor | None]
"""What a gate takes and gives. ``None`` stands where there is no gradient."""


def tensors(payload: Payload | None) -> Iterator[Tensor]:
    """The tensors of a payload, in its own order, without the ``None``s."""
    if payload is None:
        return
    if isinstance(payload, Tensor):
        yield payload
    else:
        parts = payload.values() if isinstance(payload, dict) else payload
        yield from (part for part in parts if part is not None)


def map_tensors(function: Callable[[Tensor], Tensor | None], payload: Payload) -> Payload:
    """A payload of the same form with ``function`` applied to every tensor in it.

    Raises:
        ProtocolError: the payload is neither a tensor nor a tuple or dict of tensors.
    """
    if isinstance(payload, Tensor):
        return function(payload)  # type: ignore[return-value]  # None stays None, inside and outside
    if isinstance(payload, tuple | list):
        return tuple(None if part is None else function(_tensor(part)) for part in payload)
    if isinstance(payload, dict):
        return {name: None if part is None else function(_tensor(part)) for name, part in payload.items()}
    raise ProtocolError(f"a payload is a tensor, or a tuple or dict of tensors; got {type(payload).__name__}")


def _tensor(part: object) -> Tensor:
    if isinstance(part, Tensor):
        return part
    raise ProtocolError(f"a payload holds tensors alone; got {type(part).__name__} inside it")


def same_form(gradient: Payload | None, output: Payload) -> bool:
    """Whether ``gradient`` can be a gradient of ``output``: same form, shapes and dtypes, or None."""
    if gradient is None:
        return True
    if isinstance(gradient, Tensor):
        return (
            isinstance(output, Tensor) and gradient.shape == output.shape and gradient.dtype == output.dtype
        )
    if isinstance(gradient, dict):
        return (
            isinstance(output, dict)
            and gradient.keys() == output.keys()
            and all(same_form(part, output[name]) for name, part in gradient.items() if part is not None)  # type: ignore[arg-type]  # an output has no None
        )
    return (
        isinstance(output, tuple)
        and len(gradient) == len(output)
        and all(same_form(g, o) for g, o in zip(gradient, output, strict=True) if g is not None)  # type: ignore[arg-type]  # likewise
    )


def signature(payload: Payload) -> str:
    """Shape and dtype of a payload in words, as in ``float32 (128, 784)``."""
    if isinstance(payload, Tensor):
        return f"{str(payload.dtype).removeprefix('torch.')} {tuple(payload.shape)}"
    if isinstance(payload, dict):
        inside = ", ".join(f"{k}: {signature(v) if v is not None else None}" for k, v in payload.items())
        return f"{{{inside}}}"
    return f"({', '.join(signature(v) if v is not None else 'None' for v in payload)})"


def is_floating(tensor: Tensor) -> bool:
    """Whether a gradient can exist for this tensor."""
    return torch.is_floating_point(tensor) or torch.is_complex(tensor)


def all_finite(some: Iterable[Tensor | None]) -> bool:
    """Whether no NaN and no infinity is in any of these tensors.

    A sum passes any NaN or infinity on, in one cheap read; only where it is not finite (or overflowed)
    is it worth looking at every element.
    """
    for tensor in some:
        if tensor is not None:
            total = tensor.sum().item()
            if total - total != 0 and not bool(tensor.isfinite().all()):  # inf − inf and NaN are not 0
                return False
    return True


def samples(payload: Payload) -> int:
    """Samples in a batch: the length of its first tensor; 1 for a tensor without dimensions."""
    first = next(tensors(payload))
    return len(first) if first.dim() else 1


def form(payload: Payload) -> str:
    """Shape without the batch dimension, and dtype, of every tensor, as in ``float32 (*, 784)``."""
    return ", ".join(
        f"{str(t.dtype).removeprefix('torch.')} ({', '.join(['*', *map(str, t.shape[1:])])})"
        for t in tensors(payload)
    )


def memory(tensor: Tensor) -> int:
    """Where the tensor's elements lie: two tensors with equal answers may share them."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def nbytes(tensor: Tensor) -> int:
    """Bytes of its elements; of a sparse tensor, of what there is of it."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    return tensor.nbytes
