"""One forward of a module on an example: its blocks in the order they are called, and who needs what.

    opened    modules whose forward is walked through, the whole one first
    block     a child of an opened module that is not opened itself: its forward stays as it is
    glue      what the forwards of opened modules compute between calls of blocks
    source    a tensor that is there otherwise than by glue: an input, what a block gave, a parameter

Nothing is traced symbolically: the forward runs, and a mode sees which tensors glue makes of which. So any
Python may be in it, as long as it calls the same blocks in the same order for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from akkordeon.core.payload import Payload, memory
from akkordeon.pipeline.splitting.calling import call

__all__ = ["INPUTS", "Call", "Source", "Sources", "Walk", "blocks_of", "tensors_in", "walked"]


class Source(NamedTuple):
    """Where a tensor comes from.

    ``of`` is the number of a call, ``INPUTS``, or the name of a parameter; ``place`` counts the tensors of a
    call's result, or of the inputs.
    """

    of: int | str
    place: int = 0


Sources = frozenset[Source]

INPUTS = -1
"""The number of what is there before all calls."""

_METADATA = frozenset(
    (
        "__get__",
        "__len__",
        "data_ptr",
        "dim",
        "dim_order",
        "element_size",
        "get_device",
        "has_names",
        "is_complex",
        "is_contiguous",
        "is_floating_point",
        "is_inference",
        "is_pinned",
        "is_same_size",
        "is_set_to",
        "is_shared",
        "is_signed",
        "ndimension",
        "nelement",
        "numel",
        "size",
        "storage_offset",
        "stride",
        "type",
        "untyped_storage",
        "_is_view",
        "__hash__",
        "requires_grad_",
        "backward",
    )
)
"""Functions that say something of a tensor, and nothing of the values in it."""


@dataclass(frozen=True)
class Call:
    """A call of a block: what it was called with and gave, and the sources of what it was called with."""

    block: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gave: Any
    needs: Sources


@dataclass
class Walk:
    """What was seen.

    Attributes:
        inputs: what the whole module was called with.
        calls: of blocks, in their order.
        needs: the sources of what the whole module gave.
        asked: sources whose values Python has looked at, as an ``if`` does: glue needs them wherever it runs.
        touched: sources that glue has done anything with, be it to ask for their shape.
        draws: glue drew random numbers.
    """

    inputs: Payload
    calls: list[Call] = field(default_factory=list)
    needs: Sources = frozenset()
    asked: Sources = frozenset()
    touched: Sources = frozenset()
    draws: bool = False


def tensors_in(some: Any) -> list[Tensor]:
    """The tensors in anything that PyTorch can look into, in its order."""
    return [leaf for leaf in tree_leaves(some) if isinstance(leaf, Tensor)]


def blocks_of(whole: nn.Module, opened: Iterable[str]) -> dict[str, nn.Module]:
    """The blocks by name; one with two names under the first."""
    opened = set(opened)
    found: dict[str, nn.Module] = {}
    known: set[int] = set()
    for name, module in whole.named_modules():
        if name in opened:
            for last, child in module.named_children():
                full = f"{name}.{last}" if name else last
                if full not in opened and id(child) not in known:
                    known.add(id(child))
                    found[full] = child
    return found


def walked(whole: nn.Module, opened: Iterable[str], example: Payload) -> Walk:
    """Run a module once on an example and see what happens.

    Args:
        whole: it is called in the mode that it is in, and may change its own state.
        opened: the names of the modules to walk through.
        example: a batch, as a gate gets it.
    """
    glue = _Glue(whole, example)
    with glue.watching(blocks_of(whole, opened)), glue:
        gave = call(whole, example)
    glue.walk.needs = glue.behind(tensors_in(gave))
    return glue.walk


class _Glue(TorchFunctionMode):
    """Sees every operation of glue, and of which sources its results are made."""

    def __init__(self, whole: nn.Module, example: Payload) -> None:
        super().__init__()
        self.walk = Walk(example)
        self._running = 0  # blocks, one inside another
        self._given: tuple[Any, Any] = (), {}
        self._needs: Sources = frozenset()
        self._sources: dict[int, Sources] = {}
        self._alike: dict[int, list[Tensor]] = {}  # by where they lie; alive, as their ids are keys
        for name, parameter in whole.named_parameters():
            self._put(parameter, frozenset([Source(name)]))
        for place, tensor in enumerate(tensors_in(example)):
            self._put(tensor, frozenset([Source(INPUTS, place)]))

    def behind(self, some: Iterable[Tensor]) -> Sources:
        """The sources of some tensors."""
        return frozenset[Source]().union(*(self._sources.get(id(t), frozenset()) for t in some))

    def _put(self, tensor: Tensor, sources: Sources) -> None:
        if id(tensor) not in self._sources:
            self._alike.setdefault(memory(tensor), []).append(tensor)
        self._sources[id(tensor)] = sources

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation of PyTorch, and note it where glue does it."""
        kwargs = kwargs or {}
        if self._running:
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        sources = self.behind(given)
        versions = [tensor._version for tensor in given]
        state = torch.get_rng_state()
        gave = func(*args, **kwargs)
        self.walk.draws |= not torch.equal(state, torch.get_rng_state())
        self.walk.touched |= sources
        for tensor, version in zip(given, versions, strict=True):
            if tensor._version != version:  # and with it all that lies in the same memory
                for alike in self._alike.get(memory(tensor), []):
                    self._put(alike, self._sources[id(alike)] | sources)
        made = tensors_in(gave)
        for tensor in made:
            self._put(tensor, self._sources.get(id(tensor), frozenset()) | sources)
        if not made and getattr(func, "__name__", "") not in _METADATA:
            self.walk.asked |= sources
        return gave

    # ── blocks ───────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def watching(self, blocks: dict[str, nn.Module]) -> Iterator[None]:
        """Look away while a block runs, and note its calls."""
        with ExitStack() as hooks:
            for name, block in blocks.items():
                begin = block.register_forward_pre_hook(self._begin, with_kwargs=True)
                hooks.callback(begin.remove)
                end = block.register_forward_hook(self._end_of(name))
                hooks.callback(end.remove)
            yield

    def _begin(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self._running += 1
        if self._running == 1:  # else another block has called it
            self._given = tree_map(lambda leaf: leaf, (args, kwargs))  # glue may change a list afterwards
            self._needs = self.behind(tensors_in(self._given))

    def _end_of(self, name: str) -> Callable[..., None]:
        def end(block: nn.Module, args: Any, gave: Any) -> None:
            if self._running == 1:
                for place, tensor in enumerate(tensors_in(gave)):
                    self._put(tensor, frozenset([Source(len(self.walk.calls), place)]))
                self.walk.calls.append(Call(name, *self._given, gave, self._needs))
            self._running -= 1

        return end
