"""What the state of a module is, in one place: how it is copied, read by name, kept and put back.

    parameters      by name, each once; with their Python attributes and hooks
    buffers         of every kind: persistent or not, None at first, registered late, one under two names
    extra state     what ``get_extra_state`` gives: tensors, and what JSON can say
    training flag   of every submodule

Everything that copies, exports, keeps or loads a module does it by what is here. As tensors by name, extra
state is ``…_extra_state`` (its JSON, as bytes) and ``…_extra_state.0``, … (the tensors in it).
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import memory
from akkordeon.pipeline.rebinding import KEEPS_OTHERS, Rebinding, inside

__all__ = [
    "Kept",
    "Statistics",
    "as_tensors",
    "copied",
    "evaluating",
    "in_fresh_memory",
    "overlapping",
    "tensors_of",
    "write",
]

EXTRA = "_extra_state"

Kept = dict[str, Any]
"""Buffers by name (a tensor, or None), and extra state under names that end in ``_extra_state``."""


# ── copying ──────────────────────────────────────────────────────────────────────────────────────────


def copied(module: nn.Module, structure_only: bool = False) -> nn.Module:
    """A deep copy with all that ``copy.deepcopy`` leaves behind.

    That is: attributes and hooks of parameters, memory that parameters share, and functions that a module
    keeps and that reach it or its parts, such as ``self.act = lambda x: x * self.scale``. Generators
    are cloned, results of a forward that it keeps are detached.

    Args:
        module: what to copy.
        structure_only: use its own parameters and buffers instead of copies, to see whether it can be copied.
    """
    memo: dict[int, Any] = {}
    parameters = list(module.parameters())
    if structure_only:
        memo.update((id(tensor), tensor) for tensor in (*parameters, *module.buffers()))
    else:
        memo.update(zip(map(id, parameters), _copied_parameters(parameters), strict=True))
    for thing in _kept_in(module):
        if isinstance(thing, torch.Generator):
            memo[id(thing)] = thing.clone_state()
        elif isinstance(thing, Tensor) and thing.grad_fn is not None:
            memo[id(thing)] = thing.detach().clone()
    twin = copy.deepcopy(module, memo)
    rebinding = Rebinding(memo)
    if not structure_only:
        for parameter in parameters:
            _copy_attributes(parameter, memo, rebinding)
    rebinding.apply()
    return twin


def _copied_parameters(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Copies that share memory where the originals do."""
    twins = [copy.deepcopy(parameter) for parameter in parameters]
    for group in overlapping(parameters):
        for i, fresh in zip(group, in_fresh_memory([parameters[i].data for i in group]), strict=True):
            twins[i].data = fresh
    return twins


def in_fresh_memory(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors that share one memory, which share one alike."""
    storage = tensors[0].untyped_storage().clone()  # type: ignore[no-untyped-call]
    return [
        tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        for tensor in tensors
    ]


def overlapping(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Groups of those, by their places, that have memory in common; tensors alone are left out."""
    by_storage: dict[int, list[tuple[int, int, int]]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.layout is torch.strided and tensor.numel() and tensor.device.type != "meta":
            last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            end = start + (last + 1) * tensor.element_size()
            by_storage.setdefault(memory(tensor), []).append((start, end, i))
    groups: list[list[int]] = []
    for spans in by_storage.values():
        reach = -1
        for start, end, i in sorted(spans):
            if start < reach:
                groups[-1].append(i)
            else:
                groups.append([i])
            reach = max(reach, end)
    return [group for group in groups if len(group) > 1]


def _copy_attributes(parameter: nn.Parameter, memo: dict[int, Any], rebinding: Rebinding) -> None:
    twin = memo[id(parameter)]
    vars(twin).update(copy.deepcopy(vars(parameter), memo))
    hooks = parameter._backward_hooks
    if hooks:
        twin._backward_hooks = OrderedDict((key, rebinding.of(hook)) for key, hook in hooks.items())


def _kept_in(module: nn.Module) -> Iterator[object]:
    """What the attributes of a module and its parts are, and what is in their lists, tuples and dicts."""
    for owner in module.modules():
        for name, thing in vars(owner).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _in(thing)


def _in(thing: object) -> Iterator[object]:
    yield thing
    if isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, list | tuple):
        yield from thing


# ── what a forward may change besides weights ────────────────────────────────────────────────────────


class Statistics:
    """A module's buffers and extra state; every training forward writes to new ones.

    So the old can be kept, or put back. Buffers may appear, vanish and be None.
    What something else in the module has too, or a view of, stays the tensor it is, and is written to.
    """

    def __init__(self, module: nn.Module) -> None:
        self._owners = [
            (f"{prefix}." if prefix else "", owner._buffers) for prefix, owner in module.named_modules()
        ]
        self._owner_of = dict(self._owners)
        self._extra = {f"{prefix}{EXTRA}": owner for prefix, owner in _with_extra_state(module)}
        self._held = dict(_held_elsewhere(module))
        self.before: Kept = self.now
        """What :meth:`roll_back` puts back."""

    @property
    def now(self) -> Kept:
        """What the module has."""
        kept: Kept = {}
        for prefix, owner in self._owners:
            if owner:
                kept.update((prefix + name, buffer) for name, buffer in owner.items())
        for name, buffer in list(self._held.items()) if self._held else ():
            if kept.get(name) is buffer:
                kept[name] = buffer.clone()
            else:  # the module has put another in its place
                del self._held[name]
        for name, module in self._extra.items():
            kept[name] = _copied_extra(name, module.get_extra_state())
        return kept

    def unchanged_since(self, left: Kept) -> bool:
        """Whether the module has the buffers of then; copies of them are others."""
        now = self.now
        return now.keys() == left.keys() and all(
            now[name] is thing or (name in self._held and torch.equal(now[name], thing))
            for name, thing in left.items()
            if isinstance(thing, Tensor)
        )

    def out_of_reach(self, module: nn.Module) -> list[str]:
        """Names of buffers in parts that the module did not have when this was made."""
        names = (name for name, _ in module.named_buffers())
        return [name for name in names if "".join(name.rpartition(".")[:2]) not in self._owner_of]

    def install(self, kept: Mapping[str, Any]) -> None:
        """Make the module use these, and no others."""
        for _, owner in self._owners:
            if owner:
                owner.clear()
        for name, thing in kept.items():
            if name in self._extra:
                self._extra[name].set_extra_state(copy.deepcopy(thing))
            else:
                prefix, dot, last = name.rpartition(".")
                if name in self._held and _alike(
                    thing, self._held[name]
                ):  # past autograd: to whom a backward needs it, it is what it was
                    self._held[name].data.copy_(thing)
                    thing = self._held[name]
                self._owner_of[prefix + dot][last] = thing

    def renew(self) -> None:
        """Give the module copies to write to."""
        self.before = self.now
        self.install_copies(self.before)

    def install_copies(self, kept: Mapping[str, Any]) -> None:
        """Make the module use copies of these; what was one tensor stays one."""
        if kept:
            twins = {
                id(b): b.clone()
                for name, b in kept.items()
                if isinstance(b, Tensor) and name not in self._held
            }
            self.install({name: twins.get(id(thing), thing) for name, thing in kept.items()})

    def roll_back(self) -> None:
        """Put back what was there before :meth:`renew`."""
        self.install(self.before)


def _alike(thing: Tensor | None, held: Tensor) -> bool:
    return thing is not None and (thing.shape, thing.dtype) == (held.shape, held.dtype)


def _held_elsewhere(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers whose memory something else in the module has too: a list, an object, another buffer."""
    buffers = [(name, b) for name, b in module.named_buffers() if b.layout is torch.strided and b.numel()]
    if not buffers:
        return
    others = {memory(thing) for thing in _tensors_beside(module)}
    shared = {i for group in overlapping([buffer for _, buffer in buffers]) for i in group}
    for i, (name, buffer) in enumerate(buffers):
        if i in shared or memory(buffer) in others:
            yield name, buffer


def _tensors_beside(module: nn.Module) -> Iterator[Tensor]:
    """The tensors in a module's attributes, and in objects there, that are none of its state."""
    own = ("_parameters", "_buffers", "_modules")
    parts = list(module.modules())
    waiting: list[Any] = [thing for part in parts for name, thing in vars(part).items() if name not in own]
    seen = {id(part) for part in parts}
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, KEEPS_OTHERS):
            waiting.extend(inside(thing))
        elif isinstance(thing, set | deque):
            waiting.extend(thing)
        else:
            waiting.extend(getattr(thing, "__dict__", {}).values())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have the module in evaluation mode, and every part of it in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train()  # a part may do something on this way, as on the other
        for part, mode in modes:
            part.training = mode


# ── by name, as tensors ──────────────────────────────────────────────────────────────────────────────


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All of a module's state as tensors by name, its own and not copied.

    Raises:
        RecipeError: extra state that cannot be carried.
    """
    return as_tensors(module.named_parameters(), Statistics(module).now)


def as_tensors(weights: Iterable[tuple[str, Tensor]], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights by name and statistics as tensors by name.

    Raises:
        RecipeError: extra state that cannot be carried.
    """
    state = dict(weights)
    for name, thing in kept.items():
        if name.rpartition(".")[2] == EXTRA:
            state.update(_packed(name, thing))
        elif thing is not None:
            state[name] = thing
    return state


def write(state: Mapping[str, Tensor], module: nn.Module) -> None:
    """Put tensors by name into a module's parameters, buffers and extra state; what has no name here stays.

    Raises:
        RecipeError: the module has no place for one of them.
    """
    parts = dict(module.named_modules())
    like = next((t for t in (*module.parameters(), *module.buffers())), None)
    device = None if like is None else like.device
    extra = {prefix + EXTRA: part for prefix, part in _with_extra_state(module)}
    for name, part in extra.items():
        if name in state:
            part.set_extra_state(_unpacked(name, state))
    for name, tensor in state.items():
        prefix, _, last = name.rpartition(".")
        if name in extra or prefix in extra:
            continue
        if prefix not in parts:
            raise RecipeError(f"the module has no part {prefix!r} for {name!r}")
        _write_one(parts[prefix], last, tensor, device)


def _write_one(part: nn.Module, name: str, tensor: Tensor, device: torch.device | None) -> None:
    parameter = part._parameters.get(name)
    there: Tensor | None = part._buffers.get(name) if parameter is None else parameter
    if there is not None and there.shape == tensor.shape and there.dtype == tensor.dtype:
        with torch.no_grad():
            there.copy_(tensor)  # in place: what was tied stays tied
    elif parameter is not None:
        parameter.data = tensor.detach().to(device, copy=True)
    elif name in part._buffers:
        part._buffers[name] = tensor.detach().to(device, copy=True)
    else:
        part.register_buffer(name, tensor.detach().to(device, copy=True))


# ── extra state ──────────────────────────────────────────────────────────────────────────────────────


def _with_extra_state(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for prefix, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            yield f"{prefix}." if prefix else "", part


def _packed(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Extra state as tensors: first what JSON says of it, as bytes, then the tensors in it."""
    inside: list[Tensor] = []
    try:
        text = json.dumps(_said(value, inside.append, inside))
    except TypeError as error:
        raise _cannot_carry(name, error) from None
    yield name, torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    for i, tensor in enumerate(inside):
        yield f"{name}.{i}", tensor


def _copied_extra(name: str, value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except TypeError as error:
        raise _cannot_carry(name, error) from error


def _cannot_carry(name: str, why: object) -> RecipeError:
    return RecipeError(
        f"the extra state {name!r} cannot be carried: {why}; it may hold tensors, numbers, strings, bytes, "
        "None, and lists, tuples and dicts of them"
    )


def _said(value: Any, keep: Callable[[Tensor], None], kept: Sequence[Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        keep(value.detach())
        return {"tensor": len(kept) - 1}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [_said(each, keep, kept) for each in value]
    if isinstance(value, tuple):
        return {"tuple": [_said(each, keep, kept) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[_said(k, keep, kept), _said(v, keep, kept)] for k, v in value.items()]}
    raise TypeError(f"it holds a {type(value).__name__}")


def _unpacked(name: str, state: Mapping[str, Tensor]) -> Any:
    return _meant(json.loads(bytes(state[name].cpu().tolist())), name, state)


def _meant(said: Any, name: str, state: Mapping[str, Tensor]) -> Any:
    if isinstance(said, list):
        return [_meant(each, name, state) for each in said]
    if not isinstance(said, dict):
        return said
    ((kind, content),) = said.items()
    if kind == "tensor":
        return state[f"{name}.{content}"].clone()
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "tuple":
        return tuple(_meant(each, name, state) for each in content)
    return {_key(_meant(k, name, state)): _meant(v, name, state) for k, v in content}


def _key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
