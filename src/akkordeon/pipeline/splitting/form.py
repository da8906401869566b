"""What travels between gates that were cut from one module, and what stands for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import Payload
from akkordeon.pipeline.splitting.walk import CallSpan, Source

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

    @cached_property
    def outline(self) -> str:
        """All of it that gates after this one are given as it was on the example."""
        return _outline(self.template)

    def refuse_other(self, some: Any, what: str) -> None:
        """Refuse what has tensors elsewhere, or another number between them.

        Raises:
            RecipeError: it is so.
        """
        if isinstance(some, Tensor) and isinstance(self.template, Tensor):  # nearly always
            return
        found = _outline(some)
        if found != self.outline:
            raise RecipeError(
                f"{what} is {found}, on the example it was {self.outline}; only tensors travel between "
                "gates, so all that differs from batch to batch has to be in one"
            )

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


def _outline(some: Any) -> str:
    if isinstance(some, Tensor):
        return "Tensor"
    if isinstance(some, dict):
        return "{" + ", ".join(f"{name!r}: {_outline(part)}" for name, part in some.items()) + "}"
    if isinstance(some, tuple | list):
        return "(" + ", ".join(map(_outline, some)) + ")"
    return repr(some) if isinstance(some, int | float | str) else type(some).__name__


def nothing_like(tensor: Tensor) -> Tensor:
    """A tensor of the same form, full of what shows where it is used: NaN, or the least of all integers."""
    return _nothing(tensor, ()).expand(tensor.shape)


def _nothing(like: Tensor, shape: Sequence[int]) -> Tensor:
    dtype = like.dtype
    value: Any = float("nan")
    if not (dtype.is_floating_point or dtype.is_complex):
        value = dtype is torch.bool or torch.iinfo(dtype).min
    return torch.full(tuple(shape), value, dtype=dtype, device=like.device)


def _filler(like: Tensor, shape: Tensor | None) -> Tensor:
    """Of the shape that was sent, with memory of its own, as glue may write to it; without one, as it is."""
    return like if shape is None else _nothing(like, shape.tolist())


def _shape(tensor: Tensor) -> Tensor:
    return torch.tensor(tensor.shape, dtype=torch.int64)


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
            entries.append(_shape(values[source]) if source in values else shapes[source])
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
        spans: opened modules that stand aside once they are over, with the forms of what they gave.
    """

    names: tuple[str, ...]
    first: int
    last: int
    takes: Parcel | None
    gives: Parcel | None
    inputs: Form
    gave: tuple[Form, ...]
    spans: tuple[CallSpan, ...] = ()

    @cached_property
    def passed(self) -> list[CallSpan]:
        """Those that were over before this gate."""
        return [span for span in self.spans if span.end <= self.first]

    @cached_property
    def ending(self) -> list[CallSpan]:
        """Those that end in this gate, and whose result is sent, in the order of their ends."""
        sent = set() if self.gives is None else {s.of for s in (*self.gives.values, *self.gives.shapes)}
        return [span for span in self.spans if span.number in sent and self.first < span.end <= self.last + 1]

    @cached_property
    def leaves_with(self) -> int | None:
        """The number of the span with whose end the forward is left; None where its last call is the end."""
        return next((span.number for span in reversed(self.ending) if span.end == self.last + 1), None)
