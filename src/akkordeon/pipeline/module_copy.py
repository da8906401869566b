"""A copy of a module that is whole: ``copy.deepcopy``, and all that it leaves behind.

``forward = module.forward; module.forward = lambda x: 2 * forward(x)`` keeps a function whose cell has a
method of the module. Left as it is, it would go on computing with the original, whose weights nobody updates.
So functions in the copy are made again, to close over the copy.
"""

from __future__ import annotations

import copy
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from akkordeon.core.payload import memory

__all__ = ["copied", "in_fresh_memory", "overlapping", "tensors_in"]


Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module, structure_only: bool = False) -> Module:
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


def tensors_in(things: Iterable[object], known: Iterable[object] = ()) -> Iterator[Tensor]:
    """The tensors in these, in what they hold and in the attributes of that, but for what is known."""
    waiting: list[Any] = list(things)
    seen = set(map(id, known))
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, _CONTAINERS):
            waiting.extend(_inside(thing))
        elif isinstance(thing, set | deque):
            waiting.extend(thing)
        else:
            waiting.extend(getattr(thing, "__dict__", {}).values())


# ── functions ────────────────────────────────────────────────────────────────────────────────────────


class Rebinding:
    """What stands in a copy for what is in the original, through functions, methods and their containers.

    Args:
        memo: of the deep copy: the copy of everything copied, by the id of the original.
    """

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._made: dict[int, Any] = {}
        self._kept: list[Any] = []  # alive, as their ids are keys

    def apply(self) -> None:
        """Have all functions kept in what was copied close over the copies."""
        for key, twin in list(self._memo.items()):
            if key == id(self._memo) or isinstance(twin, Tensor | types.ModuleType):
                continue
            if isinstance(twin, list):
                twin[:] = [self.of(thing) for thing in twin]
            for owned in (twin if isinstance(twin, dict) else None, getattr(twin, "__dict__", None)):
                if isinstance(owned, dict):
                    changed = {name: self.of(thing) for name, thing in owned.items()}
                    for name, new in changed.items():
                        if new is not owned[name]:
                            owned[name] = new  # one of a class of its own may have no update()

    def of(self, thing: Any) -> Any:
        """What stands for it in the copy; itself, where it reaches nothing that was copied."""
        if not isinstance(thing, _CONTAINERS) or id(thing) in self._memo or not self._reaches(thing):
            return self._memo.get(id(thing), thing)
        if id(thing) not in self._made:
            self._kept.append(thing)
            self._made[id(thing)] = self._again(thing)
        return self._made[id(thing)]

    def _reaches(self, thing: Any) -> bool:
        seen: set[int] = set()
        waiting = [thing]
        while waiting:
            one = waiting.pop()
            if self._memo.get(id(one), one) is not one:
                return True
            if isinstance(one, _CONTAINERS) and id(one) not in seen:
                seen.add(id(one))
                waiting.extend(_inside(one))
        return False

    def _again(self, thing: Any) -> Any:
        if isinstance(thing, types.FunctionType):
            return self._function(thing)
        if isinstance(thing, types.MethodType):
            return types.MethodType(self.of(thing.__func__), self.of(thing.__self__))
        if isinstance(thing, partial):
            keywords = {name: self.of(value) for name, value in thing.keywords.items()}
            return type(thing)(self.of(thing.func), *map(self.of, thing.args), **keywords)
        if isinstance(thing, tuple):
            parts = [self.of(part) for part in thing]
            return thing._make(parts) if hasattr(thing, "_make") else type(thing)(parts)
        made: Any = type(thing)()
        self._made[id(thing)] = made  # it may hold itself
        if isinstance(thing, list):
            made.extend(self.of(part) for part in thing)
        else:
            made.update((name, self.of(part)) for name, part in thing.items())
        return made

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = [self._cell(cell) for cell in function.__closure__ or ()]
        twin = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            None,
            tuple(new for _, new in cells) or None,
        )
        self._made[id(function)] = twin  # its cells may hold it
        for cell, new in cells:
            if _is_filled(cell) and not _is_filled(new):
                new.cell_contents = self.of(cell.cell_contents)
        twin.__defaults__ = tuple(map(self.of, function.__defaults__ or ())) or None
        defaults = function.__kwdefaults__
        twin.__kwdefaults__ = defaults and {name: self.of(value) for name, value in defaults.items()}
        twin.__qualname__ = function.__qualname__
        vars(twin).update((name, self.of(value)) for name, value in vars(function).items())
        return twin

    def _cell(self, cell: types.CellType) -> tuple[types.CellType, types.CellType]:
        """A cell and the one that stands for it; functions that share one go on sharing one."""
        if id(cell) not in self._made:
            self._kept.append(cell)
            self._made[id(cell)] = types.CellType()
        return cell, self._made[id(cell)]


_CONTAINERS = (types.FunctionType, types.MethodType, partial, tuple, list, dict)
"""What can be looked into, whoever wrote it."""


def _inside(thing: Any) -> Iterable[Any]:
    """What is directly in one of these."""
    if isinstance(thing, types.FunctionType):
        return _in_function(thing)
    if isinstance(thing, types.MethodType):
        return thing.__func__, thing.__self__
    if isinstance(thing, partial):
        return thing.func, *thing.args, *thing.keywords.values()
    return thing.values() if isinstance(thing, dict) else thing


def _in_function(function: types.FunctionType) -> Iterator[Any]:
    yield from (cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
