"""Where a payload enters a module: as leaves that can take a gradient, and whole afterwards."""

from __future__ import annotations

from torch import Tensor

from akkordeon.payload import Payload, is_floating, map_tensors, tensors

__all__ = ["Door"]


class Door:
    """Prepares payloads for a module and finds out whether the module writes to what it is given.

    A first layer that works in place meets a leaf error, breaks the graph of the gate before it, or
    writes through a slice into the user's data set. So the first payload goes in as a copy; if the
    module wrote to that one, every payload does.

    Args:
        needs_gradient: whether anybody wants the gradient by the payload.
    """

    def __init__(self, needs_gradient: bool) -> None:
        self._needs_gradient = needs_gradient
        self._works_in_place: bool | None = None  # None until the first payload has been through
        self._version = 0

    def open(self, payload: Payload) -> tuple[Payload, Payload]:
        """The leaves to differentiate by, and what to give the module: the leaves or copies of them."""
        leaves = map_tensors(self._leaf, payload)
        given = leaves if self._works_in_place is False else map_tensors(Tensor.clone, leaves)
        self._version = _written(given)
        return leaves, given

    def _leaf(self, tensor: Tensor) -> Tensor:
        leaf = tensor.detach()
        return leaf.requires_grad_() if self._needs_gradient and is_floating(leaf) else leaf

    def close(self, given: Payload) -> None:
        """Look at what the module was given, after it has run.

        Raises:
            RuntimeError: the module wrote to its input, though it did not write to its first.
        """
        wrote = _written(given) != self._version
        if self._works_in_place is None:
            self._works_in_place = wrote
        elif wrote and not self._works_in_place:
            raise RuntimeError("the module works in place on some inputs only; put a clone before it")


def _written(payload: Payload) -> int:
    """How often the tensors were written to, all together."""
    if type(payload) is Tensor:
        return payload._version
    return sum(tensor._version for tensor in tensors(payload))
