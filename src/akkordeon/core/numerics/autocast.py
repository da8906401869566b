"""Autocast of the caller's thread, carried to where modules and losses run.

PyTorch keeps it by thread, and a gate runs in another one: ``with torch.autocast(…)`` around a session
would change nothing, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["Autocast", "autocast_here", "autocast_of"]

DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Autocast:
    """The dtype for each type of device where autocast is on.

    Args:
        modes: (type of device, dtype) each.
    """

    modes: tuple[tuple[str, torch.dtype], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.modes)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result, computed under it.

        Of the weights it leaves no casts behind: PyTorch drops them with the outermost autocast, and where
        the caller's is around this one, as in the simulator, it would keep those of all versions.
        """
        with ExitStack() as stack:
            stack.callback(torch.clear_autocast_cache)
            for device, dtype in self.modes:
                stack.enter_context(torch.autocast(device, dtype))
            return function(*args)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that always runs under it; it can be pickled where the function can."""
        return partial(self.call, function)


def autocast_of(module: nn.Module, dtype: torch.dtype) -> Autocast:
    """One of this dtype, on the devices where a module's parameters are, or on CPUs where it has none."""
    devices = {parameter.device.type for parameter in module.parameters()} or {"cpu"}
    return Autocast(tuple((device, dtype) for device in sorted(devices)))


def autocast_here() -> Autocast:
    """What is on in this thread."""
    on = [device for device in DEVICES if torch.is_autocast_enabled(device)]
    return Autocast(tuple((device, torch.get_autocast_dtype(device)) for device in on))
