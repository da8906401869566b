"""The random generator of the process: what a module does with it, found out as it runs.

PyTorch has one generator for CPUs, whoever draws. ``torch.utils.checkpoint`` notes its state before it
runs a part of the forward, and in the backward rewinds it to that state, runs the part again, and puts it
back. That gives the same masks only if nobody else draws in between, so an engine with several workers
must know who does what.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from types import CodeType, FrameType
from typing import Any, TypeVar

import torch

__all__ = ["GeneratorObserver", "GeneratorUse"]

T = TypeVar("T")

REWINDING: CodeType = torch.random.set_rng_state.__code__


class GeneratorUse(Enum):
    """What an actor does with the generator. Those of one use may be at work together, but for ALONE."""

    NONE = 0
    DRAWS = 1
    REWINDS = 2
    """Without drawing in between."""
    ALONE = 3
    """It draws and rewinds, or nobody knows yet."""


class GeneratorObserver:
    """What a module does with the generator: its forwards may draw, its backwards may rewind.

    Forwards are looked at until the first backward, and after it those of a module that rewinds. While
    they are, nobody else draws.
    """

    __slots__ = ("_draws", "_known", "use")

    def __init__(self) -> None:
        self.use = GeneratorUse.ALONE
        self._draws = False
        self._known = False

    def forward(self, run: Callable[..., T], *args: Any) -> T:
        """Run a forward, and see whether it draws."""
        if self._draws or self.use is GeneratorUse.NONE:
            return run(*args)
        before = torch.get_rng_state()
        result = run(*args)
        self._draws = not torch.equal(before, torch.get_rng_state())
        if self._draws and self._known:
            self.use = GeneratorUse.ALONE
        return result

    def backward(self, run: Callable[..., T], *args: Any) -> T:
        """Run a backward, and see whether it rewinds."""
        if self._known:
            return run(*args)
        result, rewinds = _rewinds(run, *args)
        self._known = True
        if rewinds:
            self.use = GeneratorUse.ALONE if self._draws else GeneratorUse.REWINDS
        else:
            self.use = GeneratorUse.DRAWS if self._draws else GeneratorUse.NONE
        return result


def _rewinds(run: Callable[..., T], *args: Any) -> tuple[T, bool]:
    """The result, and whether anything set the generator's state meanwhile, or might have.

    A profiler that is at work already, such as cProfile, leaves no room for a look.
    """
    if sys.getprofile() is not None:
        return run(*args), True
    rewound = False

    def look(frame: FrameType, event: str, arg: object) -> None:
        nonlocal rewound
        rewound = rewound or frame.f_code is REWINDING

    sys.setprofile(look)
    try:
        result = run(*args)
    finally:
        sys.setprofile(None)
    return result, rewound
