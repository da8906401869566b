"""A CUDA stream for each gate on a GPU, so that the work of gates overlaps there as it does on threads.

What one stream makes, another may read only when it has come so far: with each payload goes an event, which
the stream of the receiver waits for. The host waits for nothing. All other messages and reports are rare, and
what is in them is complete before they go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from akkordeon.core.actor import Actor
from akkordeon.core.messages import Kind, Message
from akkordeon.core.payload import tensors

__all__ = ["DeviceStreams", "complete"]


class DeviceStreams:
    """The streams of one session's gates. Actors without one work on the device's default stream."""

    def __init__(self) -> None:
        self._own: dict[str, torch.cuda.Stream] = {}
        self._made: dict[int, tuple[Any, torch.cuda.Event]] = {}  # by the id of the message, which is kept

    def admit(self, actor: Actor) -> None:
        """Give an actor a stream, if it works on a GPU."""
        device = actor.device
        if device is None or device.type != "cuda":
            return
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))  # its weights were moved there
        for tensor in _moved_there(actor):
            tensor.record_stream(stream)  # before their memory is another's, it must be done with them
        self._own[actor.address] = stream

    @contextmanager
    def handling(self, actor: Actor, message: Message | None) -> Iterator[None]:
        """Have an actor work on its stream, once what the message brings is complete; None brings nothing."""
        made = self._made.pop(id(message), None)
        with torch.cuda.stream(self._own.get(actor.address)):
            if made is not None:
                _take_over(made[0].payload, made[1])
            yield

    def sent(self, message: Any) -> None:
        """Note how far a device must have come before a message is handled."""
        if message.kind is Kind.CONTROL:
            complete()
            return
        payload = getattr(message, "payload", None)
        first = next((tensor for tensor in tensors(payload) if tensor.is_cuda), None)
        if first is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(first.device))
            self._made[id(message)] = message, event

    def dropped(self, message: Message) -> None:
        """Nobody will handle it."""
        self._made.pop(id(message), None)


def complete() -> None:
    """Wait until all is done that a gate has begun on the stream of its own; the others have the default."""
    stream = torch.cuda.current_stream()
    if stream != torch.cuda.default_stream():
        stream.synchronize()


def _moved_there(actor: Actor) -> Iterator[Tensor]:
    """The tensors of its module that are on a GPU; all else it makes itself."""
    module: nn.Module | None = getattr(actor, "module", None)
    if module is not None:
        yield from (each for each in chain(module.parameters(), module.buffers()) if each.is_cuda)


def _take_over(payload: Any, made: torch.cuda.Event) -> None:
    """Have the streams that are current now wait, and the memory stay until they are done with it."""
    for tensor in tensors(payload):
        if tensor.is_cuda:
            stream = torch.cuda.current_stream(tensor.device)
            stream.wait_event(made)
            tensor.record_stream(stream)
