"""One forward of a module on an example: its blocks in the order they are called, and who needs what.

    opened    modules whose forward is walked through, the whole one first
    block     a child of an opened module that is not opened itself: its forward stays as it is
    glue      what the forwards of opened modules compute between calls of blocks
    source    a tensor that is there otherwise than by glue: an input, what a block gave, a parameter; and,
              for those who come when it is over, what an opened module gave

Nothing is traced symbolically: the forward runs, and a mode sees which tensors glue makes of which. So any
Python may be in it, as long as it calls the same blocks in the same order for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from akkordeon.core.payload import Payload, copy_of, memory
from akkordeon.pipeline.module_copy import tensors_in
from akkordeon.pipeline.splitting.calling import call

__all__ = [
    "INPUTS",
    "Call",
    "CallSpan",
    "Look",
    "Source",
    "Sources",
    "Walk",
    "blocks_of",
    "hides_tensors",
    "leaves_in",
    "walked",
]


class Source(NamedTuple):
    """Where a tensor comes from.

    ``of`` is the number of a call or of a span, ``INPUTS``, or the name of a parameter; ``place`` counts the
    tensors of a result, or of the inputs.
    """

    of: int | str
    place: int = 0


Sources = frozenset[Source]

Look = tuple[Source, tuple[str, ...]]
"""A source that glue looks at, and the names of the opened modules that this glue is in, outermost first."""

INPUTS = -1
"""The number of what is there before all calls; spans have those below."""

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
    """A call of a block.

    Args:
        block: its name.
        args: what it was called with.
        kwargs: what it was called with by name.
        gave: what it gave.
        needs: the sources of what it was called with.
        autocast: the type of autocast around the call, by the devices that it is on for.
    """

    block: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gave: Any
    needs: Sources
    autocast: Mapping[str, torch.dtype]


@dataclass(frozen=True)
class CallSpan:
    """The forward of an opened module.

    Args:
        module: its name.
        number: of what it gave, as a source; below ``INPUTS``.
        first: the number of the first call in it.
        end: the number of the first call after it.
        gave: what it gave.
    """

    module: str
    number: int
    first: int
    end: int
    gave: Any


@dataclass
class Walk:
    """What was seen.

    Attributes:
        inputs: what the whole module was called with.
        calls: of blocks, in their order.
        spans: of opened modules, as they ended.
        made_of: the sources of what spans gave, by the sources that they are.
        within_blocks: the names of opened modules that a block has called.
        needs: the sources of what the whole module gave.
        asked: values that Python has looked at, as an ``if`` does: glue needs them wherever it runs.
        touched: what glue has done anything with, be it to ask for a shape.
        draws: glue drew random numbers.
    """

    inputs: Payload
    calls: list[Call] = field(default_factory=list)
    spans: list[CallSpan] = field(default_factory=list)
    made_of: dict[Source, Sources] = field(default_factory=dict)
    within_blocks: set[str] = field(default_factory=set)
    needs: Sources = frozenset()
    asked: set[Look] = field(default_factory=set)
    touched: set[Look] = field(default_factory=set)
    draws: bool = False


def leaves_in(some: Any) -> list[Tensor]:
    """The tensors in anything that PyTorch can look into, in its order."""
    return [leaf for leaf in tree_leaves(some) if isinstance(leaf, Tensor)]


def hides_tensors(some: Any) -> bool:
    """Whether there are tensors in something that PyTorch cannot look into."""
    return len(list(tensors_in([some]))) > len(set(map(id, leaves_in(some))))


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
    inputs = tree_map(lambda leaf: copy_of(leaf) if isinstance(leaf, Tensor) else leaf, example)
    glue, modules = _Glue(whole, inputs), dict(whole.named_modules())
    walked_through = {name: modules[name] for name in opened if name and name in modules}
    with glue.watching(blocks_of(whole, opened), walked_through), glue:
        gave = call(whole, _in_new_containers(inputs))
    glue.walk.needs = glue.behind(leaves_in(gave))
    glue.walk.asked |= glue.looks(whole.buffers())  # statistics are kept wherever the glue runs
    return glue.walk


def _in_new_containers(some: Any) -> Any:
    """The same tensors; glue may change a list or dict."""
    return tree_map(lambda leaf: leaf, some)


class _Glue(TorchFunctionMode):
    """Sees every operation of glue, and of which sources its results are made."""

    def __init__(self, whole: nn.Module, example: Payload) -> None:
        super().__init__()
        self.walk = Walk(example)
        self._modules = list(whole.modules())
        self._running = 0  # blocks, one inside another
        self._open: list[tuple[str, int, dict[int, tuple[Tensor, int]]]] = []
        self._given: tuple[Any, Any] = (), {}
        self._versions: dict[int, int] = {}
        self._needs: Sources = frozenset()
        self._autocast: dict[str, torch.dtype] = {}
        self._sources: dict[int, Sources] = {}
        self._alike: dict[int, list[Tensor]] = {}  # by where they lie; alive, as their ids are keys
        for name, parameter in whole.named_parameters():
            self._put(parameter, frozenset([Source(name)]))
        for place, tensor in enumerate(leaves_in(example)):
            self._put(tensor, frozenset([Source(INPUTS, place)]))

    def behind(self, some: Iterable[Tensor]) -> Sources:
        """The sources of some tensors."""
        return frozenset[Source]().union(*(self._sources.get(id(t), frozenset()) for t in some))

    def looks(self, some: Iterable[Tensor]) -> set[Look]:
        """What glue looks at with some tensors."""
        within = tuple(name for name, _, _ in self._open)
        return {(source, within) for source in self.behind(some)}

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
        given = leaves_in((args, kwargs))
        sources = self.behind(given)
        versions = [tensor._version for tensor in given]
        state = torch.get_rng_state()
        gave = func(*args, **kwargs)
        self.walk.draws |= not torch.equal(state, torch.get_rng_state())
        self.walk.touched |= self.looks(given)
        for tensor, version in zip(given, versions, strict=True):
            if tensor._version != version:  # and with it all that lies in the same memory
                for alike in self._alike.get(memory(tensor), []):
                    self._put(alike, self._sources[id(alike)] | sources)
        name = getattr(func, "__name__", "")
        if name not in _METADATA:
            self.walk.asked |= self.looks(t for t in given if _decides(t, name))
        made = leaves_in(gave)
        for tensor in made:
            self._put(tensor, self._sources.get(id(tensor), frozenset()) | sources)
        if not made and name not in _METADATA:
            self.walk.asked |= self.looks(given)
        return gave

    # ── blocks ───────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def watching(self, blocks: dict[str, nn.Module], opened: dict[str, nn.Module]) -> Iterator[None]:
        """Look away while a block runs, and note its calls, and what opened modules give."""
        with ExitStack() as hooks:
            for name, module in opened.items():
                open_it, close_it = self._open_of(name), self._close_of(name)
                hooks.callback(module.register_forward_pre_hook(open_it, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(close_it).remove)
            for name, block in blocks.items():
                begin = block.register_forward_pre_hook(self._begin, with_kwargs=True)
                hooks.callback(begin.remove)
                end = block.register_forward_hook(self._end_of(name))
                hooks.callback(end.remove)
            yield

    @contextmanager
    def _looking_away(self) -> Iterator[None]:
        """What is done within is not the glue's."""
        self._running += 1
        yield
        self._running -= 1

    def _open_of(self, name: str) -> Callable[..., None]:
        def open_it(module: nn.Module, args: Any, kwargs: Any) -> None:
            with self._looking_away():
                given = list(tensors_in([args, kwargs], known=self._modules))
                self._open.append((name, len(self.walk.calls), {id(t): (t, t._version) for t in given}))

        return open_it

    def _close_of(self, name: str) -> Callable[..., None]:
        def close_it(module: nn.Module, args: Any, gave: Any) -> None:
            _, first, given = self._open.pop()
            if self._running:
                self.walk.within_blocks.add(name)
                return
            with self._looking_away():
                versions = {id(tensor): version for tensor, version in given.values()}
                self._note_span(name, first, versions, gave)

        return close_it

    def _note_span(self, name: str, first: int, versions: Mapping[int, int], gave: Any) -> None:
        """Note what an opened module gives; what it was given and gives as it is comes from before, too."""
        walk = self.walk
        number = INPUTS - 1 - len(walk.spans)
        walk.spans.append(CallSpan(name, number, first, len(walk.calls), _in_new_containers(gave)))
        for place, tensor in enumerate(leaves_in(gave)):
            source, before = Source(number, place), self.behind([tensor])
            walk.made_of[source] = before
            is_own = versions.get(id(tensor)) != tensor._version and not isinstance(tensor, nn.Parameter)
            self._put(tensor, frozenset([source]) if is_own else before | {source})

    def _begin(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self._running += 1
        if self._running == 1:  # else another block has called it
            self._given = _in_new_containers((args, kwargs))
            given = list(tensors_in([args, kwargs], known=self._modules))
            self._needs = self.behind(given)
            self._versions = {id(tensor): tensor._version for tensor in given}
            self._autocast = _autocast({tensor.device.type for tensor in given})

    def _end_of(self, name: str) -> Callable[..., None]:
        def end(block: nn.Module, args: Any, gave: Any) -> None:
            if self._running == 1:
                self._put_result(leaves_in(gave))
                call = Call(name, *self._given, _in_new_containers(gave), self._needs, self._autocast)
                self.walk.calls.append(call)
            self._running -= 1

        return end

    def _put_result(self, gave: Sequence[Tensor]) -> None:
        """Note where the result of a call comes from; what it was given and gives as it is, from both."""
        before = {
            id(tensor): self.behind([tensor])
            for tensor in gave
            if self._versions.get(id(tensor)) == tensor._version
        }
        for place, tensor in enumerate(gave):
            source = Source(len(self.walk.calls), place)
            before[id(tensor)] = before.get(id(tensor), frozenset()) | {source}
        for tensor in gave:
            self._put(tensor, before[id(tensor)])


def _decides(tensor: Tensor, operation: str) -> bool:
    """Whether an operation would fail, or give another shape, with other values of a tensor."""
    if tensor.dtype is torch.bool:
        return operation in ("__getitem__", "masked_select", "nonzero", "argwhere")
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)


def _autocast(devices: Iterable[str]) -> dict[str, torch.dtype]:
    return {
        device: torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)
    }
