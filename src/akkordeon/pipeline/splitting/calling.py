"""How a whole module is called with a batch: as ``module(x)``, ``module(*x)`` or ``module(**x)``."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from akkordeon.core.payload import Payload

__all__ = ["arguments", "call"]


def arguments(module: nn.Module, payload: Payload) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as positional arguments and keyword arguments of a module's forward.

    A dict whose names are those of arguments is keyword arguments, a tuple or list for a forward of several
    arguments is positional ones; all else is the one argument.
    """
    if isinstance(payload, Tensor):
        return (payload,), {}
    signature = inspect.signature(module.forward)
    if isinstance(payload, dict) and payload and _takes(signature, payload):
        return (), dict(payload)
    if isinstance(payload, tuple | list) and _takes_several(signature) and not hasattr(payload, "_fields"):
        return tuple(payload), {}
    return (payload,), {}


def _takes(signature: inspect.Signature, named: dict[str, Any]) -> bool:
    try:
        signature.bind(**named)
    except TypeError:
        return False
    return True


def _takes_several(signature: inspect.Signature) -> bool:
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    several = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) > 1
    return several or inspect.Parameter.VAR_POSITIONAL in kinds


def call(module: nn.Module, payload: Payload) -> Any:
    """What the module gives for a batch."""
    args, kwargs = arguments(module, payload)
    return module(*args, **kwargs)
