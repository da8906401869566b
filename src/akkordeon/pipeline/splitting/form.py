"""What travels between gates that were cut from one module, and what stands for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from akkordeon.core.payload import Payload
from akkordeon.pipeline.splitting.walk import Source

__all__ = ["Form", "Parcel", "Piece", "nothing_like"]


@dataclass(frozen=True)
class Form:
    """What inputs, or the result of a call, look like: all but the values of their tensors."""

    template: Any

    @classmethod
    def of(cls, some: Any) -> Form:
        """The form of something; its tensors become ones that take no memory."""
        return cls(tree_map(lambda leaf: nothing_like(leaf) if isinstance(leaf, Tensor) else leaf, some))

    def __deepcopy__(self, memo: dict[int, Any]) -> Form:
        """Itself: nobody writes to it."""
        return self

    def filled(self, values: Mapping[Source, Tensor], shapes: Mapping[Source, Tensor], of: int) -> Any:
        """The same with values of tensors, by their sources; NaNs where there are none."""
        places = count()
        device = next(iter(values.values())).device

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            source = Source(of, next(places))
            return values[source] if source in values else _filler(leaf.to(device), shapes.get(source))

        return tree_map(value, self.template)


def nothing_like(tensor: Tensor) -> Tensor:
    """A tensor of the same form, full of what shows where it is used: NaN, or the least of all integers."""
    dtype = tensor.dtype
    value: Any = float("nan")
    if not (dtype.is_floating_point or dtype.is_complex):
        value = dtype is torch.bool or torch.iinfo(dtype).min
    return torch.full((), value, dtype=dtype, device=tensor.device).expand(tensor.shape)


def _filler(like: Tensor, shape: Tensor | None) -> Tensor:
    """Of the shape that was sent, with memory of its own, as glue may write to it; without one, as it is."""
    return like if shape is None else like.flatten()[:1].expand(shape.tolist()).clone()


@dataclass(frozen=True)
class Parcel:
    """What travels from one gate to the next.

    Args:
        values: the sources of the tensors in it.
        shapes: the sources of which the shape is enough, as an integer tensor.
    """

    values: tuple[Source, ...]
    shapes: tuple[Source, ...]

    def packed(self, values: Mapping[Source, Tensor], shapes: Mapping[Source, Tensor]) -> Payload:
        """As a payload: one tensor, or a tuple of them."""
        entries = [values[source] for source in self.values]
        for source in self.shapes:
            entries.append(torch.tensor(values[source].shape) if source in values else shapes[source])
        return entries[0] if len(entries) == 1 else tuple(entries)

    def unpacked(self, payload: Payload) -> tuple[dict[Source, Tensor], dict[Source, Tensor]]:
        """Tensors, and shapes, by their sources."""
        entries = [payload] if isinstance(payload, Tensor) else list(payload)
        values = dict(zip(self.values, entries, strict=False))
        return values, dict(zip(self.shapes, entries[len(self.values) :], strict=True))


@dataclass(frozen=True)
class Piece:
    """What of a whole module a gate has.

    Args:
        names: the block of each call of the whole, in order.
        first: the number of the gate's first call.
        last: the number of its last one; the last gate also does all that comes after.
        takes: what is sent to it; None for the first gate, which gets the batch.
        gives: what it sends; None for the last gate, which gives what the whole gives.
        inputs: the form of a batch.
        gave: the form of the result of each call.
    """

    names: tuple[str, ...]
    first: int
    last: int
    takes: Parcel | None
    gives: Parcel | None
    inputs: Form
    gave: tuple[Form, ...]
