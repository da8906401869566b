"""A gate whose device computes behind the host, which is never waited for on a batch's way.

    host     ── forward ─ backward ─ update ── forward ─ backward ─ update ──▶
    device       ──── forward ─── backward ─── update ──▶
                                                ╰─ "all finite": read when it has come

On a CPU a gate looks whether an output, a gradient and an update are finite before they have an effect. Here
the device looks: an update whose gradients are not finite is one that it does not make, as optimizers do
that know ``found_inf``. The host hears of it some batches later, and only then is the batch refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.actor import Effect
from akkordeon.core.messages import Backward, Batch, Fault, Forget, Forward
from akkordeon.core.numerics.later import Later, found_not_finite, is_behind
from akkordeon.core.payload import Payload, all_finite, tensors
from akkordeon.core.plain_state import StageState
from akkordeon.core.recovery.messages import Save
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.stage import Position, Stashed

__all__ = ["AheadGate"]

ON_THE_WAY = (Forward, Backward, Forget)
"""What is handled without waiting for the device; before anything else all is known of what came before."""


class AheadGate(GateActor):
    """A gate that goes on before it knows; see :class:`GateActor`.

    The first update of each parameter is one like on a CPU, and so is every one of an optimizer that knows no
    ``found_inf``.
    """

    def __init__(
        self, gate: Gate, position: Position, restored: StageState | None = None, *, anew: bool = False
    ) -> None:
        super().__init__(gate, position, restored, anew=anew)
        self._in_doubt: deque[tuple[Batch, Later]] = deque()

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Refuse what is known by now not to have been finite, then handle a message."""
        yield from self._refuse_what_came(wait=type(message) not in ON_THE_WAY)
        self._are_finite = _as_far_as_known if self._updater.can_skip else all_finite
        yield from super().receive(message, now_s)

    def _forward(self, message: Forward) -> Iterator[Effect]:
        """Refuse what the host knows not to be finite, before the device has it."""
        if _as_far_as_known(tensors(message.payload)) or self._is_forgotten(message.batch):
            yield from super()._forward(message)
        else:
            yield self._refuse(message.batch, Fault.NOT_FINITE, "its input is not finite")

    def _learn(
        self, passed: Backward, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> Iterator[Effect]:
        if self._updater.can_skip:
            self._updater.skip_if = found = found_not_finite(gradients)
            if found is not None:
                self._in_doubt.append((passed.batch, Later(found)))
        yield from super()._learn(passed, gradients, stashed, staleness)

    def _save(self, message: Save) -> Iterator[Effect]:
        """Leave a snapshot in which nothing is in doubt: whoever goes on from it could not refuse it."""
        yield from self._refuse_what_came(wait=True)
        yield from super()._save(message)

    def _derived(
        self, batch: Batch, stashed: Stashed, gradient: Payload | None
    ) -> tuple[Payload | None, list[Tensor | None]]:
        """On this thread: else PyTorch has one for the backwards of all gates of a device."""
        with torch.autograd.set_multithreading_enabled(False):
            return super()._derived(batch, stashed, gradient)

    def _refuse_what_came(self, *, wait: bool) -> Iterator[Effect]:
        while self._in_doubt and (wait or self._in_doubt[0][1].is_here):
            batch, found = self._in_doubt.popleft()
            if found.get():
                yield self._refuse(batch, Fault.NOT_FINITE, "its gradient is not finite; nothing was updated")


def _as_far_as_known(some: Iterable[Tensor | None]) -> bool:
    """Whether those are finite of which the host knows."""
    return all_finite(tensor for tensor in some if tensor is not None and not is_behind(tensor))
