"""The loss of a batch: what a sentinel gives a loss function, and the gradient that it sends back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.numerics.autograd import gradients, graph_behind, with_gradients
from akkordeon.core.numerics.later import now_or_later, to_device
from akkordeon.core.payload import (
    Payload,
    copy_of,
    gradient_like,
    is_floating,
    map_nested,
    map_tensors,
    needing_gradient,
    tensors,
)

__all__ = [
    "OWN_WEIGHTS",
    "BatchLoss",
    "GraphCheck",
    "Loss",
    "LossInputs",
    "check_loss",
    "loss_of",
    "to_targets_device",
]

Loss = Callable[[Any, Any], Tensor]
"""From (outputs, targets) to one number, the mean over the batch."""

READ_ONLY = vars(F)
"""The globals of losses that are known to write to nothing that they are given, and so need no copy of it."""

OWN_WEIGHTS = (
    "its loss has a trainable weight of its own, {}, which no optimizer has, so it would never learn; "
    "make it part of a gate, or freeze it with requires_grad_(False)"
)
"""Why such a loss is refused; to be filled in with which weight it is."""


def check_loss(loss: object) -> None:
    """Refuse what cannot be called with (outputs, targets).

    Raises:
        RecipeError: it cannot.
    """
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        raise RecipeError(
            f"loss is a function of (outputs, targets), got the class {loss.__name__}; "
            f"make one of it: {loss.__name__}()"
        )
    if not callable(loss):
        raise RecipeError(f"loss is a function of (outputs, targets), got {type(loss).__name__}")


def to_targets_device(y: Any, outputs: Payload) -> Any:
    """The targets where the outputs are, in whatever tuples, lists and dicts they come.

    Raises:
        DataError: there is no tensor in the outputs.
    """
    first = next(tensors(outputs), None)
    if first is None:
        raise DataError("there is no tensor in its outputs")
    return _moved(y, first.device)


def _moved(y: Any, device: torch.device) -> Any:
    if isinstance(y, Tensor):
        return to_device(y, device)
    return map_nested(partial(_moved, device=device), y)


class LossInputs:
    """Outputs as a loss or a score may have them: it may write into them and change their dict.

    The copies are no leaves, so that autograd follows what is written into them, as in a plain loop. Nobody
    else sees it: the outputs themselves are still the gate's, and the sentinel's for the gradient.

    Args:
        outputs: of the last gate.
        loss: who is given them first.
    """

    def __init__(self, outputs: Payload, loss: Loss) -> None:
        self._outputs = outputs
        spared = getattr(loss, "__globals__", None) is READ_ONLY  # functools.wraps copies a __module__
        self.payload = outputs if spared else with_gradients(map_tensors, copy_of, outputs)
        self._copies = () if spared else tuple(tensors(self.payload))

    def unchanged(self) -> Payload:
        """The outputs as they were, again for somebody who may write into them."""
        if not self._copies or any(one._version for one in self._copies):
            return map_tensors(_copy, self._outputs)
        of = dict(zip(map(id, tensors(self._outputs)), self._copies, strict=True))
        return map_tensors(lambda output: of[id(output)].detach(), self._outputs)


def _copy(output: Tensor) -> Tensor:
    return copy_of(output.detach())


class BatchLoss:
    """The loss of a batch at the outputs that came back for it.

    Args:
        outputs: of the last gate; they stay as they are.
        y: the batch's labels.
        function: the loss.

    Attributes:
        leaves: the outputs, as leaves of the loss's graph.
        targets: the labels where the outputs are.
        loss: one number, with its graph.
        value: that number; on a device that is behind, the tensor, whose number comes later.

    Raises:
        RecipeError: the function gives something else than one number.
    """

    def __init__(self, outputs: Payload, y: Any, function: Loss) -> None:
        self.leaves = map_tensors(_leaf_of, outputs)
        self.targets = to_targets_device(y, self.leaves)
        self._given = LossInputs(self.leaves, function)
        self.loss = with_gradients(loss_of, function, self._given.payload, self.targets)
        self.value = now_or_later(self.loss)

    def gradient(self) -> Payload:
        """Of the loss by the outputs, in their form; None where there is none.

        Raises:
            RecipeError: it does not depend on them.
        """
        return _gradient_of(self.loss, self.leaves)

    def outputs(self) -> Payload:
        """The outputs for somebody else, who may write into them."""
        return self._given.unchanged()


def _leaf_of(output: Tensor) -> Tensor:
    leaf = output.detach()
    return leaf.requires_grad_() if is_floating(leaf) else leaf


def loss_of(function: Loss, outputs: Any, targets: Any) -> Tensor:
    """The loss of a batch, one number.

    Raises:
        RecipeError: the function gives something else.
    """
    loss = function(outputs, targets)
    if not isinstance(loss, Tensor):
        raise RecipeError(f"its loss must be a tensor with one number, got a {type(loss).__name__}")
    if loss.is_complex():
        raise RecipeError(f"its loss must be a real number, got {str(loss.dtype).removeprefix('torch.')}")
    if loss.numel() != 1:
        raise RecipeError(f"its loss must be one number, got shape {tuple(loss.shape)}; take the mean")
    return loss


class GraphCheck:
    """Refuses a loss with trainable weights of its own: no optimizer has them, so they would never learn.

    To follow a graph takes a good part of the time of the loss itself. So only some are followed: the first,
    any that ends in an operation not seen before, and else ever fewer, those of batches 2, 4, 8, …
    """

    def __init__(self) -> None:
        self._batches = 0
        self._next = 1
        self._last_operations: set[type] = set()

    def look(self, loss: Tensor, leaves: Payload) -> None:
        """Look at the loss of a batch, if it is time.

        Raises:
            RecipeError: it has weights of its own.
        """
        self._batches += 1
        last_operation = type(loss.grad_fn)
        if self._batches < self._next and last_operation in self._last_operations:
            return
        _follow(loss, leaves)
        if self._batches == self._next:
            self._next *= 2
        self._last_operations.add(last_operation)


def _follow(loss: Tensor, leaves: Payload) -> None:
    known = {id(leaf) for leaf in tensors(leaves)}
    for node in graph_behind([loss]):
        weight = getattr(node, "variable", None)
        if weight is not None and id(weight) not in known:
            raise RecipeError(OWN_WEIGHTS.format(f"of shape {tuple(weight.shape)}"))


def _gradient_of(loss: Tensor, leaves: Payload) -> Payload:
    if not loss.requires_grad:
        raise RecipeError("its loss does not depend on the network's outputs; there is nothing to learn")
    wanted = needing_gradient(leaves)
    return gradient_like(leaves, wanted, gradients([loss], wanted, [torch.ones_like(loss)]))
