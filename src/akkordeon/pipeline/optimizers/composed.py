"""Several optimizers that pass for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.optim import Optimizer

__all__ = ["Composed", "all_within", "kind_of"]


class Composed(Optimizer):
    """Optimizers of different parameters as one, with the groups and the state of all.

    Schedulers, checkpoints and whoever else asks for groups and state find what they would in one optimizer.

    Args:
        parts: the optimizers; they are not to be used by themselves any more.
    """

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self._groups = [len(part.param_groups) for part in parts]

    @property
    def parts(self) -> Sequence[Optimizer]:
        """The optimizers, on the groups and the state as they are now: those that are loaded are others."""
        start = 0
        for part, count in zip(self._parts, self._groups, strict=True):
            part.param_groups, part.state = self.param_groups[start : start + count], self.state
            start += count
        return self._parts

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of each."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss


def all_within(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Those that an optimizer is composed of, and itself, last."""
    if isinstance(optimizer, Composed):
        for part in optimizer.parts:
            yield from all_within(part)
    yield optimizer


def kind_of(optimizer: Optimizer) -> str:
    """The class of an optimizer, with those it is composed of: ``ErrorFeedback(SGD)``."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, Composed):
        return name
    return f"{name}({', '.join(map(kind_of, optimizer.parts))})"
