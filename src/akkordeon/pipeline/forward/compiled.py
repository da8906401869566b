"""A module whose forward goes through ``torch.compile``, under the names that its state has without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["compile_forward"]


def compile_forward(module: nn.Module, settings: bool | Mapping[str, Any]) -> None:
    """Have a module compute with a compiled forward, once one is asked for.

    Not the module as a whole is compiled: around one there would be another, with other names of the weights.
    Its own hooks run as they are.

    Args:
        module: a gate's own.
        settings: True, or arguments of ``torch.compile``; False leaves the module as it is.
    """
    if settings is not False:
        arguments = {} if settings is True else settings
        vars(module)["forward"] = torch.compile(module.forward, **arguments)
