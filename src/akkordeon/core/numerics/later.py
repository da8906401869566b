"""Numbers on a device that computes behind the host, and how not to wait for them.

A GPU does what it is told some time after the call that told it. Whoever asks for one of its numbers waits
until it has come so far, and has nothing new for it to do when it gets there. So what a batch's way needs no
answer to is read later, when the number has come by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Later", "found_not_finite", "is_behind", "now_or_later", "to_device"]


def is_behind(tensor: Tensor) -> bool:
    """Whether its elements may not be computed yet."""
    return tensor.is_cuda


def now_or_later(number: Tensor) -> float | Tensor:
    """A tensor's one number; of a device that is behind, the tensor, without its graph."""
    return number.detach() if is_behind(number) else number.item()


class Later:
    """A number that a device is still to compute.

    Args:
        number: shape ().
    """

    __slots__ = ("_came", "_number")

    def __init__(self, number: Tensor) -> None:
        self._came: torch.cuda.Event | None = None
        self._number = number
        if is_behind(number):
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._came = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._came.record(torch.cuda.current_stream(number.device))  # of this device, not the current one

    @property
    def is_here(self) -> bool:
        """Whether it can be had without waiting."""
        return self._came is None or self._came.query()  # type: ignore[no-untyped-call]

    def get(self) -> float:
        """The number; waits for it where it is not here."""
        if self._came is not None:
            self._came.synchronize()
        return self._number.item()


def found_not_finite(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """1.0 if a NaN or an infinity is in any of these, else 0.0: float32, shape (), on their device.

    It is the check of ``torch.amp.GradScaler``, which writes every element back as it is.

    Returns:
        None where there is no gradient.
    """
    alike: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        if gradient is not None:
            dense = (gradient._values() if gradient.is_sparse else gradient).detach()
            parts = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
            alike[parts.dtype].append(parts)
    found = None
    for some in alike.values():
        if found is None:
            found = torch.zeros((), device=some[0].device)
            one = torch.ones((), device=found.device)  # what they are scaled by
        torch._amp_foreach_non_finite_check_and_unscale_(some, found, one)
    return found


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; the host goes on before it is there, if the device can fetch it by itself."""
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.layout is torch.strided:
        return _pinned(tensor).to(device, non_blocking=True)
    return tensor.to(device)


def _pinned(tensor: Tensor) -> Tensor:
    """Where a device can fetch it. A number that is spread has a place for each element, as it has there."""
    return tensor if tensor.is_pinned() else torch.empty_like(tensor, pin_memory=True).copy_(tensor)
