"""The gradient of a batch at the weights of now, computed beside the gate, which stays as it is.

    gate     x ─▶ module, weights of then ─▶ y      gradient of y ─▶ stale gradient
    twin     x ─▶ module, weights of now  ─▶ y'     gradient of y ─▶ fresh gradient

The twin is a module of its own, with copies of weights and buffers. What a forward writes, to weights, to
buffers or to attributes, it writes there. The process's generator is rewound to where it was before the
batch's forward, and afterwards is put where it was. Functions that hooks call are the user's, and are called
once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from akkordeon.core.numerics.autocast import Autocast
from akkordeon.core.numerics.autograd import with_gradients
from akkordeon.core.payload import Payload, itself, needing_gradient
from akkordeon.pipeline.forward.output import output_of
from akkordeon.pipeline.input_guard import InputGuard
from akkordeon.pipeline.learning.gradient_forms import differentiable
from akkordeon.pipeline.module_state import BufferState, Statistics
from akkordeon.pipeline.nn import Seeded
from akkordeon.pipeline.weights import Snapshot, Weights

__all__ = ["GeneratorStates", "Twin", "generators_at", "generators_now"]

Derive = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor | None]]


class GeneratorStates(NamedTuple):
    """The states of the generators that PyTorch's own random functions draw from; None if left alone."""

    cpu: Tensor | None = None
    cuda: Tensor | None = None


def generators_now(device: torch.device | None, cpu: bool) -> GeneratorStates:
    """Those of the process: that of the device, if it is a CUDA one, and the CPU's if it is asked for."""
    return GeneratorStates(
        cpu=torch.get_rng_state() if cpu else None,
        cuda=torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None,
    )


@contextmanager
def generators_at(then: GeneratorStates, device: torch.device | None, cpu: bool) -> Iterator[None]:
    """Have these generators as they were at some time, and afterwards as they are now."""
    now = generators_now(device, cpu)
    try:
        _rewind(then if cpu else then._replace(cpu=None), device)
        yield
    finally:
        _rewind(now, device)


def _rewind(states: GeneratorStates, device: torch.device | None) -> None:
    if states.cpu is not None:
        torch.set_rng_state(states.cpu)
    if states.cuda is not None:
        assert device is not None, "else there would be no state of it"
        torch.cuda.set_rng_state(states.cuda, device)


class Twin:
    """A module that computes gradients in the place of a gate's.

    Args:
        module: like the gate's, and nobody else's.
        autocast: what it runs under.
        needs_gradient: whether the gate's input requires one.
    """

    def __init__(self, module: nn.Module, autocast: Autocast, needs_gradient: bool) -> None:
        self._weights = Weights(module)
        self._buffers = Statistics(module)
        self._call: Callable[[Payload], object] = autocast.around(module) if autocast else module
        self._needs_gradient = needs_gradient
        self._seeded = [part for part in module.modules() if isinstance(part, Seeded)]

    def gradients(
        self,
        x: Payload,
        gradient: Payload | None,
        weights: Snapshot,
        buffers: BufferState,
        keys: Sequence[tuple[object, ...]],
        derive: Derive,
    ) -> list[Tensor | None]:
        """Gradients by each weight that is trained; None where the output does not depend on it.

        Args:
            x: the gate's input.
            gradient: that of its output.
            weights: to compute at; they are copied.
            buffers: to begin with; likewise.
            keys: what the batch gives the random modules to begin from.
            derive: what finds gradients in a graph.
        """
        twins = self._weights.like_now(dict(zip(self._weights.names, weights, strict=True)))
        self._weights.install(twins)
        self._buffers.install_copies(buffers)
        for module, key in zip(self._seeded, keys, strict=True):
            module.reseed(key)
        leaves, y = with_gradients(self._forward, x)
        for module, key in zip(self._seeded, keys, strict=True):
            module.replay(key, module.marks())
        outputs, seeds = differentiable(y, gradient)
        inputs = needing_gradient(leaves)
        found = derive(outputs, [*inputs, *(twins[i] for i in self._weights.trainable)], seeds)
        return list(found[len(inputs) :])

    def _forward(self, x: Payload) -> tuple[Payload, Payload]:
        leaves, given = InputGuard(self._needs_gradient).prepare(x)  # a new one gives copies
        y = self._call(given)
        return leaves, y if isinstance(y, Tensor) else output_of(y, itself)
