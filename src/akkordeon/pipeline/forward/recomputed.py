"""A module that runs again in the backward, so that a batch in flight keeps none of what it computes.

    forward     x ─▶ module ─▶ y       kept: x, y, and which weights, buffers and random state there were
    backward    x ─▶ module ─▶ graph ─▶ gradients

This is PyTorch's checkpointing (Chen et al. 2016, arXiv:1604.06174). The gate gives the second run the
weights and the masks of the first, as to any module with checkpoints of its own; here it gets its buffers
too, and what it writes to them is dropped. So the numbers are those of a module that runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import Payload, copy_of, itself, map_tensors
from akkordeon.pipeline.input_guard import InputGuard
from akkordeon.pipeline.module_state import BufferState, Statistics
from akkordeon.pipeline.weights import Weights

__all__ = ["Recomputed"]

WHOLE: dict[str, Any] = {"early_stop": False} if "early_stop" in signature(checkpoint).parameters else {}
"""Run to the end again. Else the second run is over when the last tensor is kept that a backward needs, and a
kernel that still had to write to it, as that of ``RReLU``, never runs. PyTorch 2.6 cannot be told so.
"""


class Recomputed:
    """Calls a gate's module, and has what it does not keep computed again.

    Args:
        call: the module, or what calls it.
        weights: its weights, which nobody may write to in a forward.
        buffers: its buffers, renewed before each forward.
        guard: what it is given has been through this.
    """

    def __init__(
        self, call: Callable[[Payload], Any], weights: Weights, buffers: Statistics, guard: InputGuard
    ) -> None:
        self._call = call
        self._weights = weights
        self._buffers = buffers
        self._guard = guard

    def __call__(self, given: Payload) -> Any:
        """What the module gives, with a graph that has nothing of it but how to compute it.

        Raises:
            RecipeError: the module writes to its weights, which two runs would do twice.
        """
        if not torch.is_grad_enabled():
            return self._call(given)
        self._refuse_writes()
        # The module may write to what it is given, and the second run needs it as it was.
        untouched = map_tensors(copy_of if self._guard.copies else itself, given)
        first = [given]
        before = self._buffers.before

        def run(again: Payload) -> Any:
            return self._call(first.pop()) if first else self._run_again(again, before)

        return checkpoint(run, untouched, use_reentrant=False, **WHOLE)

    def _run_again(self, given: Payload, before: BufferState) -> Any:
        self._refuse_writes()
        buffers = self._buffers.now
        self._buffers.install_copies(before)
        try:
            return self._call(given)
        finally:
            self._buffers.install(buffers)

    def _refuse_writes(self) -> None:
        written = self._weights.written
        if written:
            raise RecipeError(
                f"its module writes to its weight {written[0]!r} in the forward, which a second run would do "
                "again; leave recompute out for this gate"
            )
