"""What the state of a module is, in one place: how it is read by name, kept and put back.

    parameters      by name, each once; with their Python attributes and hooks
    buffers         of every kind: persistent or not, None at first, registered late, one under two names
    extra state     what ``get_extra_state`` gives: tensors, and what JSON can say
    training flag   of every submodule

Everything that copies, exports, keeps or loads a module does it by what is here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import memory
from akkordeon.pipeline.extra_state import (
    EXTRA,
    copied_extra_state,
    extra_state_from,
    extra_state_owners,
    extra_state_tensors,
)
from akkordeon.pipeline.module_copy import overlapping, tensors_in

__all__ = [
    "BufferState",
    "Outline",
    "Statistics",
    "as_tensors",
    "evaluating",
    "outline_of",
    "tensors_of",
    "write",
]

BufferState = dict[str, Any]
"""Buffers by name (a tensor, or None), and extra state under names that end in ``_extra_state``."""


Outline = Mapping[str, tuple[int, ...] | None]
"""Shapes by name; None where there may be any, or nothing: of extra state, and of buffers that are None."""


# ── what a forward may change besides weights ────────────────────────────────────────────────────────


class Statistics:
    """A module's buffers and extra state; every training forward writes to new ones.

    So the old can be kept, or put back. Buffers may appear, vanish and be None.
    What something else in the module has too, or a view of, stays the tensor it is, and is written to.
    """

    def __init__(self, module: nn.Module) -> None:
        self._owners = [
            (f"{prefix}." if prefix else "", owner._buffers) for prefix, owner in module.named_modules()
        ]
        self._owner_of = dict(self._owners)
        self._tables = [owner for _, owner in self._owners]
        self._extra = dict(extra_state_owners(module))
        self._held = dict(_held_elsewhere(module))
        self.before: BufferState = self.now
        """What :meth:`roll_back` puts back."""

    @property
    def now(self) -> BufferState:
        """What the module has."""
        kept: BufferState = {}
        for prefix, owner in self._owners:
            if owner:
                kept.update((prefix + name, buffer) for name, buffer in owner.items())
        for name, buffer in list(self._held.items()) if self._held else ():
            if kept.get(name) is buffer:
                kept[name] = buffer.clone()
            else:  # the module has put another in its place
                del self._held[name]
        for name, module in self._extra.items():
            kept[name] = copied_extra_state(name, module.get_extra_state())
        return kept

    def unchanged_since(self, left: BufferState) -> bool:
        """Whether the module has the buffers of then; copies of them are others."""
        now = self.now
        return now.keys() == left.keys() and all(
            now[name] is thing or (name in self._held and torch.equal(now[name], thing))
            for name, thing in left.items()
            if isinstance(thing, Tensor)
        )

    def out_of_reach(self, module: nn.Module) -> list[str]:
        """Names of buffers in parts that the module did not have when this was made."""
        names = (name for name, _ in module.named_buffers())
        return [name for name in names if "".join(name.rpartition(".")[:2]) not in self._owner_of]

    def install(self, kept: Mapping[str, Any]) -> None:
        """Make the module use these, and no others."""
        for _, owner in self._owners:
            if owner:
                owner.clear()
        for name, thing in kept.items():
            if name in self._extra:
                self._extra[name].set_extra_state(copy.deepcopy(thing))
            else:
                prefix, dot, last = name.rpartition(".")
                held = self._held.get(name)
                if held is not None and _alike(thing, held):
                    held.data.copy_(thing)  # past autograd: to whom a backward needs it, it is what it was
                    thing = held
                self._owner_of[prefix + dot][last] = thing

    def renew(self) -> None:
        """Give the module copies to write to."""
        if any(self._tables) or self._extra:  # most modules have none, and are asked for every batch
            self.before = self.now
            self.install_copies(self.before)
        else:
            self.before = {}

    def install_copies(self, kept: Mapping[str, Any]) -> None:
        """Make the module use copies of these; what was one tensor stays one."""
        if kept:
            twins = {
                id(b): b.clone()
                for name, b in kept.items()
                if isinstance(b, Tensor) and name not in self._held
            }
            self.install({name: twins.get(id(thing), thing) for name, thing in kept.items()})

    def roll_back(self) -> None:
        """Put back what was there before :meth:`renew`."""
        self.install(self.before)


def _alike(thing: Tensor | None, held: Tensor) -> bool:
    return thing is not None and (thing.shape, thing.dtype) == (held.shape, held.dtype)


def _held_elsewhere(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers whose memory something else in the module has too: a list, an object, another buffer."""
    buffers = [(name, b) for name, b in module.named_buffers() if b.layout is torch.strided and b.numel()]
    if not buffers:
        return
    others = {memory(thing) for thing in _tensors_beside(module)}
    shared = {i for group in overlapping([buffer for _, buffer in buffers]) for i in group}
    for i, (name, buffer) in enumerate(buffers):
        if i in shared or memory(buffer) in others:
            yield name, buffer


def _tensors_beside(module: nn.Module) -> Iterator[Tensor]:
    """The tensors in a module's attributes, and in objects there, that are none of its state."""
    own = ("_parameters", "_buffers", "_modules")
    parts = list(module.modules())
    attributes = [thing for part in parts for name, thing in vars(part).items() if name not in own]
    return tensors_in(attributes, known=parts)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have the module in evaluation mode, and every part of it in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train()  # a part may do something on this way, as on the other
        for part, mode in modes:
            part.training = mode


# ── by name, as tensors ──────────────────────────────────────────────────────────────────────────────


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """All of a module's state as tensors by name, its own and not copied.

    Raises:
        RecipeError: extra state that cannot be carried.
    """
    return as_tensors(module.named_parameters(), Statistics(module).now)


def outline_of(module: nn.Module) -> Outline:
    """What a module has that may be put into it."""
    state = {**dict(module.named_parameters()), **Statistics(module).now}
    return {
        name: tuple(thing.shape) if isinstance(thing, Tensor) and name.rpartition(".")[2] != EXTRA else None
        for name, thing in state.items()
    }


def as_tensors(weights: Iterable[tuple[str, Tensor]], kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights by name and statistics as tensors by name.

    Raises:
        RecipeError: extra state that cannot be carried.
    """
    state = dict(weights)
    for name, thing in kept.items():
        if name.rpartition(".")[2] == EXTRA:
            state.update(extra_state_tensors(name, thing))
        elif thing is not None:
            state[name] = thing
    return state


def write(state: Mapping[str, Tensor], module: nn.Module) -> None:
    """Put tensors by name into a module's parameters, buffers and extra state; what has no name here stays.

    Raises:
        RecipeError: the module has no place for one of them.
    """
    parts = dict(module.named_modules())
    like = next((t for t in (*module.parameters(), *module.buffers())), None)
    device = None if like is None else like.device
    extra = dict(extra_state_owners(module))
    for name, part in extra.items():
        if name in state:
            part.set_extra_state(extra_state_from(name, state))
    for name, tensor in state.items():
        prefix, _, last = name.rpartition(".")
        if name in extra or prefix in extra:
            continue
        if name in module._parameters:  # that of a part of a split position may have a dot
            prefix, last = "", name
        if prefix not in parts:
            raise RecipeError(f"the module has no part {prefix!r} for {name!r}")
        _write_one(parts[prefix], last, tensor, device)


def _write_one(part: nn.Module, name: str, tensor: Tensor, device: torch.device | None) -> None:
    parameter = part._parameters.get(name)
    there: Tensor | None = part._buffers.get(name) if parameter is None else parameter
    if there is not None and there.shape == tensor.shape and there.dtype == tensor.dtype:
        with torch.no_grad():
            there.copy_(tensor)  # in place: what was tied stays tied
    elif parameter is not None:
        parameter.data = tensor.detach().to(device, copy=True)
    elif name in part._buffers:
        part._buffers[name] = tensor.detach().to(device, copy=True)
    else:
        part.register_buffer(name, tensor.detach().to(device, copy=True))
