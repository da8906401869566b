"""Gradients through one graph, without what ``torch.autograd.grad`` asks again each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["accumulated", "gradients", "graph_behind", "with_gradients", "without_gradients"]

T = TypeVar("T")


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


def accumulated(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], seeds: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The same as :func:`gradients`, by way of ``.grad``, as ``backward()`` goes: it costs more.

    Graphs that run a backward inside their backward know no other way.
    """
    if not outputs or not inputs:
        return [None] * len(inputs)
    try:
        torch.autograd.Variable._execution_engine.run_backward(
            tuple(outputs), tuple(seeds), False, False, (), True, accumulate_grad=True
        )
        return [leaf.grad for leaf in inputs]
    finally:
        for leaf in inputs:
            leaf.grad = None


def graph_behind(outputs: Sequence[Tensor]) -> Iterator[Any]:
    """Every node of the graph that these came out of, once."""
    waiting: list[Any] = [output.grad_fn for output in outputs]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            yield node
            seen.add(node)
            waiting.extend(next_node for next_node, _ in node.next_functions)


def with_gradients(run: Callable[..., T], *args: Any) -> T:
    """Run something under ``torch.enable_grad``, at a tenth of what that costs."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(True)
    try:
        return run(*args)
    finally:
        torch._C._set_grad_enabled(before)


def without_gradients(run: Callable[..., T], *args: Any) -> T:
    """Run something under ``torch.no_grad``, at a tenth of what that costs."""
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)
    try:
        return run(*args)
    finally:
        torch._C._set_grad_enabled(before)
