"""Where a payload enters a module: as leaves that can take a gradient, and whole afterwards."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from akkordeon.core.payload import Payload, copy_of, is_floating, itself, map_tensors, memory, tensors

__all__ = ["InputGuard"]


class InputGuard:
    """Prepares payloads for a module and finds out whether the module writes to what it is given.

    A first layer that works in place meets a leaf error, breaks the graph of the gate before it, or
    writes through a slice into the user's data set. So the first payload goes in as a copy; if the
    module wrote to that one, every payload does. A container is always a new one: the module may put
    other tensors into the one it is given.

    Args:
        needs_gradient: whether anybody wants the gradient by the payload; may change.
    """

    def __init__(self, needs_gradient: bool) -> None:
        self.needs_gradient = needs_gradient
        self._works_in_place: bool | None = None  # None until the first payload has been through
        self._leaves: tuple[Tensor, ...] = ()
        self._given: tuple[Tensor, ...] = ()
        self._versions: list[int] = []

    @property
    def copies(self) -> bool:
        """Whether what the module is given is always a copy."""
        return self._works_in_place is not False

    def copy_from_now_on(self) -> None:
        """The module works in place, if not on its first payload."""
        self._works_in_place = True

    def prepare(self, payload: Payload) -> tuple[Payload, Payload]:
        """The leaves to differentiate by, and what to give the module: the leaves or copies of them."""
        copies = self._works_in_place is not False
        leaves = map_tensors(self._leaf, payload)
        if isinstance(leaves, Tensor):
            one = copy_of(leaves) if copies else leaves
            self._leaves, self._given, self._versions = (leaves,), (one,), [one._version]
            return leaves, one
        given = map_tensors(copy_of if copies else itself, leaves)
        self._leaves, self._given = tuple(tensors(leaves)), tuple(tensors(given))
        self._versions = [tensor._version for tensor in self._given]
        return leaves, given

    def _leaf(self, tensor: Tensor) -> Tensor:
        leaf = tensor.detach()
        return leaf.requires_grad_() if self.needs_gradient and is_floating(leaf) else leaf

    def verify(self) -> None:
        """Look at what the module was given, after it has run.

        Raises:
            RuntimeError: the module wrote to what it must not write to.
        """
        leaves, given = self._leaves, self._given
        self._leaves = self._given = ()
        if [tensor._version for tensor in given] == self._versions:
            self._works_in_place = bool(self._works_in_place)
            return
        written = [x for x, y, v in zip(leaves, given, self._versions, strict=True) if y._version != v]
        copied, self._works_in_place = self.copies, True
        if not copied and self.needs_gradient:
            raise RuntimeError("the module works in place on some inputs only; from now on it gets copies")
        where = Counter(memory(leaf) for leaf in {id(leaf): leaf for leaf in leaves}.values())
        if any(where[memory(x)] > 1 for x in written):
            raise RuntimeError(
                "the module writes to one of several inputs that share memory, and the others would not "
                "see it; put a clone before it"
            )
