"""Functions in the copy of a module, which ``copy.deepcopy`` leaves as they are: they close over the copy.

``forward = module.forward; module.forward = lambda x: 2 * forward(x)`` keeps a function whose cell has a
method of the module. Left as it is, it would go on computing with the original, whose weights nobody updates.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

__all__ = ["KEEPS_OTHERS", "Rebinding", "inside"]


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
                    owned.update((name, new) for name, new in changed.items() if new is not owned[name])

    def of(self, thing: Any) -> Any:
        """What stands for it in the copy; itself, where it reaches nothing that was copied."""
        if not isinstance(thing, KEEPS_OTHERS) or id(thing) in self._memo or not self._reaches(thing):
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
            if isinstance(one, KEEPS_OTHERS) and id(one) not in seen:
                seen.add(id(one))
                waiting.extend(inside(one))
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


KEEPS_OTHERS = (types.FunctionType, types.MethodType, partial, tuple, list, dict)
"""What can be looked into, whoever wrote it."""


def inside(thing: Any) -> Iterable[Any]:
    """What is directly in one of these."""
    if isinstance(thing, types.FunctionType):
        return _inside_function(thing)
    if isinstance(thing, types.MethodType):
        return thing.__func__, thing.__self__
    if isinstance(thing, partial):
        return thing.func, *thing.args, *thing.keywords.values()
    return thing.values() if isinstance(thing, dict) else thing


def _inside_function(function: types.FunctionType) -> Iterator[Any]:
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
