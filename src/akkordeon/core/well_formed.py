"""Whether a message or a record is what its class says, which one asks before one handles it.

What an engine carries may come from another machine, and from a program that is not ours. The checks of a
class are made from the types of its fields when its first message comes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from itertools import islice
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from akkordeon.core.messages import Batch, CutId, Signed
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import Applied

__all__ = ["is_identity", "malformed"]

NUMBER_MAX = 2**63 - 1
"""The largest number that a message may have."""

DEPTH_MAX = 32
"""So many tuples, lists and dicts may lie inside each other in a payload."""

PARTS_MAX = 10_000
"""So many tensors and containers may be in a payload."""

_MISSING = object()
"""In place of a field that is not there, as in bytes that somebody else wrote."""

Check = Callable[[Any], bool]

_checks: dict[type, tuple[tuple[str, Check], ...]] = {}
"""Of the classes that messages came of."""


def malformed(message: Any) -> str | None:
    """Which field of a message or record is not what its class says, in words; None where all are."""
    checks = _checks.get(type(message))
    if checks is None:
        checks = _checks[type(message)] = _checks_of(type(message))
    for name, is_right in checks:
        value = getattr(message, name, _MISSING)
        if value is _MISSING or not is_right(value):
            return f"the {name} of its {type(message).__name__} is none: {_shown(name, value)}"
    return None


def _shown(name: str, value: Any) -> str:
    """What is wrong with it."""
    if value is _MISSING:
        return "it is not there"
    if name == "payload":
        if not isinstance(value, Tensor | tuple | list | dict):
            return f"a payload is a tensor, or a tuple, list or dict of tensors; got {type(value).__name__}"
        for part in _parts(value) or ():
            if not isinstance(part, Tensor | tuple | list | dict | None):
                return f"a payload holds tensors alone; got {type(part).__name__} inside it"
        return (
            f"it is more than {DEPTH_MAX} containers deep, holds more than {PARTS_MAX} things, or has "
            "tensors without shape or memory"
        )
    if type(value) is int:
        return "it is negative" if value < 0 else "it is too large"
    return f"it is of the type {type(value).__name__}"


def _checks_of(kind: type) -> tuple[tuple[str, Check], ...]:
    """The fields of a class that can be wrong, each with its check."""
    if not is_dataclass(kind):
        return ()
    hints = get_type_hints(kind, include_extras=True)
    checks = {name: _check_of(hint) for name, hint in hints.items() if name != "kind"}
    return tuple((name, check) for name, check in checks.items() if check is not None)


def _check_of(hint: Any) -> Check | None:
    """The check of a type; None where anything is right."""
    if hint is Any:
        return None
    if hint in _CHECKS:
        return _CHECKS[hint]
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _one_of(inside)
    if origin is tuple:
        return _tuple_of(inside[0])
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_of(*inside)
    if isinstance(hint, type) and is_dataclass(hint):
        return lambda value: isinstance(value, hint) and malformed(value) is None
    return lambda value: isinstance(value, hint)


def _one_of(hints: tuple[Any, ...]) -> Check | None:
    checks = [_check_of(hint) for hint in hints]
    known = [check for check in checks if check is not None]
    return (lambda value: any(check(value) for check in known)) if len(known) == len(checks) else None


def _tuple_of(hint: Any) -> Check:
    check: Check = _check_of(hint) or _anything

    def are_right(value: Any) -> bool:
        return isinstance(value, tuple) and all(map(check, value))

    return are_right


def _mapping_of(key: Any, hint: Any) -> Check:
    check_key: Check = _check_of(key) or _anything
    check: Check = _check_of(hint) or _anything

    def is_right(value: Any) -> bool:
        return isinstance(value, Mapping) and all(map(check_key, value)) and all(map(check, value.values()))

    return is_right


def _anything(value: object) -> bool:
    return True


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def _is_signed(value: object) -> bool:
    return type(value) is int and abs(value) <= NUMBER_MAX


def is_identity(value: Any, kind: type[Any] = Batch) -> bool:
    """Whether it is the identity of a batch, or of a cut: a name and a number within bounds."""
    return (
        type(value) is kind
        and type(value[0]) is str
        and type(value[1]) is int
        and 0 <= value[1] <= NUMBER_MAX
    )


def _is_applied(value: Any) -> bool:
    return (
        type(value) is Applied
        and _is_number(value.next)
        and isinstance(value.missing, frozenset)
        and all(map(_is_number, value.missing))
    )


def _is_tensor(value: object) -> bool:
    """Whether it is a tensor that a module could be given: one with a shape and with memory."""
    return isinstance(value, Tensor) and not (value.is_nested or value.is_meta)


def _is_payload(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_nested or value.is_meta)
    if not isinstance(value, tuple | list | dict):
        return False
    parts = _parts(value)
    return parts is not None and all(
        part is None or isinstance(part, tuple | list | dict) or _is_tensor(part) for part in parts
    )


def _parts(payload: Any) -> list[Any] | None:
    """What is in a payload and its containers; None if it is too deep or too much.

    One list can be twice in another, that twice in a third: without a bound a few lists are a million parts.
    """
    level, found = [payload], list[Any]()
    for _ in range(DEPTH_MAX + 1):
        inside = (
            part
            for each in level
            if isinstance(each, tuple | list | dict)
            for part in (each.values() if isinstance(each, dict) else each)
        )
        level = list(islice(inside, PARTS_MAX + 1))
        found += level
        if not level:
            return found
        if len(found) > PARTS_MAX:
            break
    return None


_CHECKS: dict[Any, Check] = {
    str: lambda value: type(value) is str,
    int: _is_number,
    Signed: _is_signed,
    bool: lambda value: type(value) is bool,
    float: lambda value: isinstance(value, float) or type(value) is int,
    NoneType: lambda value: value is None,
    Batch: is_identity,
    CutId: lambda value: is_identity(value, CutId),
    Applied: _is_applied,
    Tensor: _is_tensor,
    Payload: _is_payload,
    Payload | None: lambda value: value is None or _is_payload(value),
}
