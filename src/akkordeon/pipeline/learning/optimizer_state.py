"""The state of an optimizer by the names of its weights, not by their order: other gates can take it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from akkordeon.core.errors import RecipeError

__all__ = ["copied_plain", "load_optimizer", "state_of_optimizer"]


def state_of_optimizer(optimizer: Optimizer, names: Sequence[str], label: str) -> dict[str, Any]:
    """What an optimizer's ``state_dict`` has, in memory of its own.

    Args:
        optimizer: of one stage.
        names: of its weights, in the order of its groups.
        label: whose it is, for errors.

    Returns:
        ``state``: by the weight's name; ``groups``: their settings, with the names of their weights.

    Raises:
        RecipeError: it keeps what is no plain data.
    """
    kept = optimizer.state_dict()
    named = dict(zip(_numbers(kept["param_groups"]), names, strict=True))
    groups = [{**group, "params": [named[i] for i in group["params"]]} for group in kept["param_groups"]]
    state = {named[i]: each for i, each in kept["state"].items()}
    copied: dict[str, Any] = copied_plain({"state": state, "groups": groups}, f"the optimizer of {label}")
    return copied


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], names: Sequence[str], label: str) -> None:
    """Have an optimizer go on from such a state, which stays as it is: it may be gone on from again.

    Raises:
        RecipeError: it is of an optimizer with other groups, or of other weights.
    """
    own, groups = optimizer.state_dict()["param_groups"], state["groups"]
    number = dict(zip(names, _numbers(own), strict=True))
    has = [sorted(group["params"]) for group in own]
    wanted = [sorted(number.get(name, -1) for name in group["params"]) for group in groups]
    if has != wanted:
        raise RecipeError(
            f"the optimizer of {label} has groups of {_sizes(has)} weights, and the state that it is to go "
            f"on from groups of {_sizes(wanted)}, or of others; resume with the optimizer of that state"
        )
    optimizer.load_state_dict(
        {
            "state": {
                number[name]: copied_plain(each, f"the optimizer of {label}")
                for name, each in state["state"].items()
            },
            "param_groups": [
                {**group, "params": mine["params"]} for group, mine in zip(groups, own, strict=True)
            ],
        }
    )


def _sizes(groups: Sequence[Sequence[Any]]) -> str:
    return ", ".join(str(len(group)) for group in groups)


def _numbers(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [number for group in groups for number in group["params"]]


def copied_plain(value: Any, whose: str) -> Any:
    """A copy of plain data.

    Raises:
        RecipeError: there is something else in it.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key: copied_plain(part, whose) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied_plain(part, whose) for part in value)
    raise RecipeError(
        f"{whose} has something of type {type(value).__name__} in its state, which cannot be kept for a "
        "restart; tensors, numbers, strings, None, and lists, tuples and dicts of them can"
    )
