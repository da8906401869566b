"""Whether the parts of a module do what the whole does, tried on an example."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.errors import ProtocolError, RecipeError, explain
from akkordeon.core.payload import Payload, copy_of, map_tensors
from akkordeon.pipeline.input_guard import InputGuard
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.splitting.calling import call
from akkordeon.pipeline.splitting.part import WHOLE, Part
from akkordeon.pipeline.splitting.walk import leaves_in

__all__ = ["verify"]

CLOSE, LEAST = 1e-3, 1e-6
"""Gradients are summed up in another order: they may differ by this share of a weight's largest, or by that
share of the largest of all."""

ROUNDINGS = 8
"""What is half as precise is rounded so often, one time this way and one time that."""


def verify(whole: nn.Module, parts: Sequence[Part], example: Payload) -> None:
    """Refuse parts that do not give what the whole does, to the bit, or other gradients.

    Raises:
        RecipeError: what differs.
    """
    name = type(whole).__name__
    for training in (True, False):
        plain = copied(whole).train(training)
        twins = [copied(part).train(training) for part in parts]
        with torch.random.fork_rng(), torch.enable_grad():
            for again in (False, True):  # a second time, as they may keep something of the first
                gave = _alike(name, plain, twins, example, again)
        _compare_buffers(whole, plain, twins)
        if training:
            _compare_gradients(name, plain, twins, *gave)


def _alike(
    name: str, plain: nn.Module, parts: Sequence[Part], example: Payload, again: bool
) -> tuple[list[Tensor], Sequence[_Step]]:
    """What the whole gives, and the steps of its parts, which have to give the same."""
    torch.manual_seed(again)
    try:
        outputs = call(plain, map_tensors(copy_of, example))
    except Exception as error:
        raise RecipeError(f"{name} cannot work on the example: {explain(error)}") from error
    _refuse_unsendable(name, outputs)
    gave = leaves_in(outputs)
    torch.manual_seed(again)
    try:
        steps = list(_forward(parts, example))
    except Exception as error:
        raise RecipeError(
            f"{name} cannot be cut so: one of its gates fails: {explain(error)}; cut elsewhere "
            "(cut_before), or into fewer gates"
        ) from error
    found = leaves_in(steps[-1][1])
    if len(found) != len(gave) or not all(map(_same, found, gave)):
        when = "for the second batch, its gates give" if again else "its gates give"
        raise RecipeError(
            f"{name} cannot be cut so: {when} something else than it; {_KEPT if again else _WHY}"
        )
    return gave, steps


def _refuse_unsendable(name: str, outputs: Any) -> None:
    try:
        map_tensors(copy_of, outputs)
    except ProtocolError as error:
        raise RecipeError(
            f"what {name} gives cannot be sent to a sentinel: {error}; have it give tensors alone, as models "
            "of transformers do with config.use_cache = False"
        ) from None


_KEPT = (
    "it keeps something of a batch for the next one that gates before have left the forward too early to "
    "see; cut elsewhere (cut_before), or have it kept by the module that uses it"
)

_WHY = (
    "between its parts it does what gates cannot do again, such as writing to a tensor in place; cut "
    "elsewhere (cut_before)"
)

_Step = tuple[Any, Any]
"""What a gate got, as leaves, and what it gave."""


def _forward(parts: Sequence[nn.Module], example: Payload) -> Iterable[_Step]:
    payload = example
    for i, part in enumerate(parts):
        guard = InputGuard(needs_gradient=i > 0)
        leaves, given = guard.prepare(payload)
        gave = part(given)
        guard.verify()
        yield leaves, gave
        if i + 1 < len(parts):
            payload = map_tensors(Tensor.detach, gave)


def _backward(steps: Sequence[_Step]) -> None:
    """Gradients of a sum in which every output counts differently, from gate to gate."""
    last = leaves_in(steps[-1][1])
    gradients: list[Tensor | None] = [
        torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
        if y.requires_grad
        else None
        for y in last
    ]
    for leaves, gave in reversed(steps):
        pairs = [
            (y, g)
            for y, g in zip(leaves_in(gave), gradients, strict=True)
            if y.requires_grad and g is not None
        ]
        if pairs:
            torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
        gradients = _each_once(leaves_in(leaves))


def _each_once(leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """Their gradients; of one that is in several places in the first, as gates send it."""
    left = {id(leaf): leaf.grad for leaf in leaves}
    return [left.pop(id(leaf), None) for leaf in leaves]


def _compare_buffers(whole: nn.Module, plain: nn.Module, parts: Sequence[Part]) -> None:
    found = dict(whole.named_buffers())  # those of blocks that any gate may call are in none
    for part in parts:  # the last one that has it counts, as in Network.module
        found |= part.of_whole(dict(part.named_buffers()))
    for buffer, expected in plain.named_buffers():
        if buffer not in found or not _same(found[buffer], expected):
            raise RecipeError(
                f"{type(whole).__name__} cannot be cut so: its buffer {buffer!r} has other values in a gate; "
                f"{_KEPT}"
            )


def _compare_gradients(
    name: str, plain: nn.Module, parts: Sequence[Part], gave: Sequence[Tensor], steps: Sequence[_Step]
) -> None:
    try:
        _backward([((), gave)])
    except Exception as error:
        raise RecipeError(f"{name} has no gradients on the example: {explain(error)}") from error
    try:
        _backward(steps)
    except Exception as error:
        raise RecipeError(
            f"{name} cannot be cut so: the backward of one of its gates fails: {explain(error)}; cut "
            "elsewhere (cut_before), or into fewer gates"
        ) from error
    expected = {name: weight.grad for name, weight in plain.named_parameters()}
    found = {
        name.removeprefix(WHOLE): weight.grad for part in parts for name, weight in part.named_parameters()
    }
    largest = max(
        (float(g.abs().max()) for g in expected.values() if g is not None and g.numel()), default=0.0
    )
    share = _share((*gave, *leaves_in([given for given, _ in steps])))
    for weight, gradient in expected.items():
        if weight not in found or not _close(found[weight], gradient, share, LEAST * largest):
            raise RecipeError(
                f"{name} cannot be cut so: its weight {weight!r} has another gradient in a gate; {_WHY}"
            )


def _share(travel: Iterable[Tensor]) -> float:
    """By which share of its largest a weight's gradient may differ, if these tensors go from gate to gate."""
    types = {tensor.dtype for tensor in travel if tensor.requires_grad}
    return max([CLOSE, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in types)])


def _close(one: Tensor | None, other: Tensor | None, share: float, least: float) -> bool:
    if one is None or other is None:
        return one is other
    one, other = one.to_dense(), other.to_dense()
    if not one.numel():
        return True
    return torch.allclose(one, other, share, max(least, share * float(other.abs().max())), equal_nan=True)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal, NaNs at the same places included."""
    if torch.equal(one, other):
        return True
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
