"""What is special about a module, found out from the first graph of its forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import ref

from torch import nn
from torch.autograd.function import BackwardCFunction

from akkordeon.core.errors import RecipeError
from akkordeon.core.numerics.autograd import graph_behind
from akkordeon.core.payload import Payload, tensors
from akkordeon.pipeline.module_state import Statistics
from akkordeon.pipeline.weights import Weights

__all__ = ["FirstGraph"]

COMPILED = "CompiledFunctionBackward"
"""What PyTorch compiles has a backward in Python, which runs no other."""


class FirstGraph:
    """Looks at the graphs that a gate's module leaves.

    Args:
        recipe: the module that the gate's is a copy of; only its parameters are known afterwards.
        module: the gate's.
        weights: its weights.
        buffers: its buffers.
    """

    def __init__(self, recipe: nn.Module, module: nn.Module, weights: Weights, buffers: Statistics) -> None:
        self._module = module
        self._weights = weights
        self._buffers = buffers
        self._originals = {id(p): (name, ref(p)) for name, p in recipe.named_parameters()}

    def look(self, y: Payload) -> bool:
        """Look at one.

        Returns:
            Whether its backward may run another, which leaves gradients in ``.grad``, as that of a reentrant
            checkpoint or a reversible layer does.

        Raises:
            RecipeError: the module computes with parameters that it keeps where a gate cannot exchange them,
                or has made some in its forward.
        """
        self._refuse_latecomers()
        may_run_another = False
        masters = dict(self._masters())
        for node in graph_behind(list(tensors(y))):
            may_run_another = may_run_another or _is_in_python(node)
            variable = getattr(node, "variable", None)
            past = masters.get(id(variable))
            original, its = self._originals.get(id(variable), ("", None))
            if its is not None and its() is variable:
                past = original
            if past is not None:
                raise RecipeError(
                    f"it reaches its parameter {past!r} past its attribute, as by a functools.partial, where "
                    "it would never learn; have the forward read the attribute"
                )
        return may_run_another

    def _masters(self) -> Iterator[tuple[int, str]]:
        for name, master in zip(self._weights.names, self._weights.masters, strict=True):
            yield id(master), name

    def _refuse_latecomers(self) -> None:
        """Refuse parameters, and parts with state, that the first forwards have made."""
        known = set(self._weights.names)
        late = [repr(name) for name, _ in self._module.named_parameters() if name not in known]
        late += [repr(name) for name in self._buffers.out_of_reach(self._module)]
        if late:
            raise RecipeError(
                f"its forward has made {', '.join(late)}, which its optimizer does not have and nobody would "
                "be handed; make it in __init__, or send one batch through first"
            )


def _is_in_python(node: Any) -> bool:
    """Whether somebody wrote the backward of a node in Python."""
    return node.name() != COMPILED and isinstance(node, BackwardCFunction)
