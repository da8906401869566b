"""How a whole module is called with a batch: as ``module(x)``, ``module(*x)`` or ``module(**x)``."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from akkordeon.core.payload import Payload

__all__ = ["arguments", "call"]


def arguments(module: nn.Module, payload: Payload) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as positional arguments and keyword arguments of a module's forward.

    A dict whose names are those of arguments is keyword arguments, a tuple or list for a forward of several
    arguments is positional ones; all else is the one argument.
    """
    named = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if isinstance(payload, dict) and payload and payload.keys() <= {parameter.name for parameter in named}:
        return (), dict(payload)
    if isinstance(payload, tuple | list) and len(named) > 1 and not hasattr(payload, "_fields"):
        return tuple(payload), {}
    return (payload,), {}


def call(module: nn.Module, payload: Payload) -> Any:
    """What the module gives for a batch."""
    args, kwargs = arguments(module, payload)
    return module(*args, **kwargs)
