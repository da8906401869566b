"""Several optimizers that pass for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from akkordeon.core.errors import RecipeError

__all__ = ["Composed", "all_within", "kind_of", "loss_of"]


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

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self.parts, "_groups": self._groups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse it, once it is made: whose they would be is not known.

        Raises:
            RecipeError: in any case.
        """
        if hasattr(self, "_parts"):
            raise RecipeError(
                f"{kind_of(self)} takes no more parameters, as it is not known which optimizer in it is to "
                "have them; make it anew, with all parameters"
            )
        super().add_param_group(param_group)

    @property
    def parts(self) -> Sequence[Optimizer]:
        """The optimizers, on the groups and the state as they are now."""
        self._share()
        return self._parts

    def _share(self) -> None:
        """Give the parts the groups and the state: those that were loaded are others."""
        start = 0
        for part, count in zip(self._parts, self._groups, strict=True):
            part.param_groups, part.state = self.param_groups[start : start + count], self.state
            start += count

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of each."""
        loss = loss_of(closure)
        for part in self.parts:
            part.step()
        return loss


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """What a closure computes, with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


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
