"""Extra state of modules (what ``get_extra_state`` gives) as tensors: its JSON, and the tensors in it.

…_extra_state         the JSON, as bytes
…_extra_state.0, …    the tensors that the JSON speaks of
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.errors import RecipeError
from akkordeon.core.plain_state import from_json_form, json_form

__all__ = [
    "EXTRA",
    "copied_extra_state",
    "extra_state_from",
    "extra_state_owners",
    "extra_state_tensors",
    "owner_of",
]

EXTRA = "_extra_state"


def extra_state_owners(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a module that have extra state, by the name that it has in the module."""
    for prefix, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            yield f"{prefix}.{EXTRA}" if prefix else EXTRA, part


def owner_of(name: str) -> str:
    """The name of what a tensor is of: of extra state where it is one in that, else its own."""
    whole, found, _ = name.partition(f"{EXTRA}.")
    return whole + EXTRA if found else name


def extra_state_tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Extra state as tensors: first what JSON says of it, as bytes, then the tensors in it.

    Raises:
        RecipeError: it cannot be carried.
    """
    inside: list[Tensor] = []

    def keep(tensor: Tensor) -> int:
        inside.append(tensor)
        return len(inside) - 1

    try:
        text = json.dumps(json_form(value, keep))
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


def extra_state_from(name: str, state: Mapping[str, Tensor]) -> Any:
    """The extra state of that name, made again from its tensors."""
    form = json.loads(bytes(state[name].cpu().tolist()))
    return from_json_form(form, lambda i: state[f"{name}.{i}"].clone())
