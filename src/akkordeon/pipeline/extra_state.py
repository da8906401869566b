"""Extra state of modules (what ``get_extra_state`` gives) as tensors: its JSON, and the tensors in it.

…_extra_state         the JSON, as bytes
…_extra_state.0, …    the tensors that the JSON speaks of
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.errors import RecipeError

__all__ = ["EXTRA", "copied_extra_state", "extra_state_from", "extra_state_owners", "extra_state_tensors"]

EXTRA = "_extra_state"


def extra_state_owners(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a module that have extra state, by the name that it has in the module."""
    for prefix, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            yield f"{prefix}.{EXTRA}" if prefix else EXTRA, part


def extra_state_tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Extra state as tensors: first what JSON says of it, as bytes, then the tensors in it.

    Raises:
        RecipeError: it cannot be carried.
    """
    inside: list[Tensor] = []
    try:
        text = json.dumps(_said(value, inside.append, inside))
    except TypeError as error:
        raise _cannot_carry(name, error) from None
    yield name, torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    for i, tensor in enumerate(inside):
        yield f"{name}.{i}", tensor


def copied_extra_state(name: str, value: Any) -> Any:
    """A deep copy of extra state.

    Raises:
        RecipeError: it cannot be copied, and so not be carried.
    """
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


def extra_state_from(name: str, state: Mapping[str, Tensor]) -> Any:
    """The extra state of that name, made again from its tensors."""
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
