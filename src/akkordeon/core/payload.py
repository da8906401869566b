"""What travels between gates: a tensor, or a tuple, list or dict of payloads, and the tensors in it.

A namedtuple stays one, and so does a dict or tuple of a class of its own: the module that takes it may ask
for its fields.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from akkordeon.core.errors import ProtocolError

__all__ = [
    "Payload",
    "all_finite",
    "bytes_of",
    "copy_of",
    "gradient_like",
    "is_floating",
    "itself",
    "map_nested",
    "map_tensors",
    "memory",
    "nbytes",
    "needing_gradient",
    "rebuilt",
    "samples",
    "tensors",
]

Container = TypeVar("Container", bound="tuple[Any, ...] | list[Any] | dict[Any, Any]")

Payload = Tensor | tuple[Any, ...] | list[Any] | dict[Any, Any]
"""What a gate takes and gives. ``None`` stands where there is nothing, or no gradient."""


def tensors(payload: Payload | None) -> Iterator[Tensor]:
    """The tensors of a payload, in its own order, without the ``None``s."""
    if isinstance(payload, Tensor):  # nearly always, and asked many times for every batch
        return iter((payload,))
    return iter(()) if payload is None else _inside(payload)


def _inside(payload: tuple[Any, ...] | list[Any] | dict[Any, Any]) -> Iterator[Tensor]:
    for part in payload.values() if isinstance(payload, dict) else payload:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple | list | dict):
            yield from _inside(part)


def map_tensors(function: Callable[[Tensor], Tensor | None], payload: Payload) -> Payload:
    """A payload of the same form, in new containers, with ``function`` applied to every tensor in it.

    What is one tensor in several places is one there again.

    Raises:
        ProtocolError: the payload is neither a tensor nor a tuple, list or dict of such.
    """
    if isinstance(payload, Tensor):
        return function(payload)  # type: ignore[return-value]  # None stays None, inside and outside
    made: dict[int, tuple[Tensor, Tensor | None]] = {}  # tensors stay alive, as their ids are keys

    def once(tensor: Tensor) -> Tensor | None:
        if id(tensor) not in made:
            made[id(tensor)] = tensor, function(tensor)
        return made[id(tensor)][1]

    return _map_places(once, payload)


def _map_places(function: Callable[[Tensor], Tensor | None], payload: Payload) -> Payload:
    """The same, with ``function`` applied in every place."""
    if isinstance(payload, tuple | list | dict):
        parts = payload.values() if isinstance(payload, dict) else payload
        return rebuilt(payload, [_mapped(function, part) for part in parts])
    raise ProtocolError(
        f"a payload is a tensor, or a tuple, list or dict of tensors; got {type(payload).__name__}"
    )


def _mapped(function: Callable[[Tensor], Tensor | None], part: object) -> Any:
    if part is None:
        return None
    if isinstance(part, Tensor):
        return function(part)
    if isinstance(part, tuple | list | dict):
        return _map_places(function, part)
    raise ProtocolError(f"a payload holds tensors alone; got {type(part).__name__} inside it")


def map_nested(function: Callable[[object], object], some: Any) -> Any:
    """``some`` with ``function`` applied to all that is in it, if it is a tuple, list or dict of anything."""
    if isinstance(some, tuple | list):
        return rebuilt(some, [function(part) for part in some])
    if isinstance(some, MutableMapping):
        changed = copy.copy(some)
        changed.update((name, function(part)) for name, part in some.items())
        return changed
    return some


def rebuilt(like: Container, parts: list[Any]) -> Container:
    """A container of the same class and with the same names around other parts."""
    kind: Any = type(like)
    made: Any
    if kind is list:
        made = parts
    elif kind is dict:
        made = dict(zip(like, parts, strict=True))
    elif isinstance(like, dict):
        made = copy.copy(like)
        for name, part in zip(like, parts, strict=True):
            made[name] = part
    else:
        made = kind._make(parts) if hasattr(kind, "_make") else kind(parts)
    return made  # type: ignore[no-any-return]  # of the class that like has


def needing_gradient(payload: Payload) -> list[Tensor]:
    """The tensors of a payload that require a gradient, each once."""
    if isinstance(payload, Tensor):
        return [payload] if payload.requires_grad else []
    return list({id(tensor): tensor for tensor in tensors(payload) if tensor.requires_grad}.values())


def gradient_like(payload: Payload, wanted: Sequence[Tensor], found: Sequence[Tensor | None]) -> Payload:
    """Gradients in the form of a payload: each in the first place of its tensor, None in all others.

    Where one tensor is in several places, whoever made it sums up nothing: autograd has, in the order that it
    has where there is no cut in between.
    """
    if isinstance(payload, Tensor):
        return found[0]  # type: ignore[return-value]  # None stays None, inside and outside
    left = dict(zip(map(id, wanted), found, strict=False))
    return _map_places(lambda tensor: left.pop(id(tensor), None), payload)


def itself(tensor: Tensor) -> Tensor:
    """The tensor, for :func:`map_tensors` to make new containers alone."""
    return tensor


def is_floating(tensor: Tensor) -> bool:
    """Whether a gradient can exist for this tensor."""
    return torch.is_floating_point(tensor) or torch.is_complex(tensor)


def all_finite(some: Iterable[Tensor | None]) -> bool:
    """Whether no NaN and no infinity is in any of these tensors.

    A sum passes any NaN or infinity on, in one cheap read; only where it is not finite (or overflowed)
    is it worth looking at every element. A vector's product with itself does so too, and costs less.
    """
    strided = torch.strided
    for tensor in some:
        if tensor is not None:
            if tensor.layout is not strided:
                tensor = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
            is_vector = tensor.dim() == 1 and tensor.is_floating_point()
            total = (tensor.dot(tensor) if is_vector else tensor.sum()).item()
            if total - total != 0 and not bool(tensor.isfinite().all()):  # inf − inf and NaN are not 0
                return False
    return True


def samples(payload: Payload) -> int:
    """Samples in a batch: the length of its first tensor; 1 for a tensor without dimensions."""
    first = next(tensors(payload))
    return len(first) if first.dim() else 1


def memory(tensor: Tensor) -> int:
    """Where the tensor's elements lie: two tensors with equal answers may share them."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.untyped_storage().data_ptr() or id(tensor)  # what has no elements shares none


def copy_of(tensor: Tensor) -> Tensor:
    """A copy to write to, laid out alike: a sum goes through its elements in the order they lie in.

    What has elements at one place in memory nobody can write to, so that a view of it will do.
    """
    twin = tensor.clone()
    if tensor.layout is not torch.strided or twin.stride() == tensor.stride():
        return twin
    if any(step == 0 < size - 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        return tensor.view_as(tensor)
    return tensor.new_empty_strided(tensor.shape, tensor.stride()).copy_(tensor)


def nbytes(tensor: Tensor) -> int:
    """Bytes of its elements; of a sparse tensor, of what there is of it."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices().nbytes + tensor._values().nbytes
    return tensor.nbytes


def bytes_of(tensor: Tensor) -> Tensor:
    """What a dense tensor of any dtype is in memory: uint8 (bytes,), on the CPU."""
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)  # one number spread is contiguous, too
