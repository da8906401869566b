"""Anything as bytes and buffers: tensors as NumPy arrays, errors so that they arrive, all else pickled.

A parcel is ``(head, buffers)``. Ray moves its buffers through shared memory without copying them, so a
tensor that was unpacked may lie in memory that is not ours: it must not be written to, which is what the
protocol asks of every tensor in a message. What is to be written to is unpacked ``writable``.
"""

from __future__ import annotations

import io
import pickle
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from akkordeon.messages import Backward, Forward

__all__ = ["Parcel", "pack", "ship_by_value", "tolerate_read_only", "unpack"]

Parcel = tuple[bytes, list[NDArray[np.uint8]]]
"""The pickled thing, and the memory of its tensors."""


def pack(thing: Any, wire_dtype: torch.dtype | None = None) -> Parcel:
    """Make a parcel of anything.

    Args:
        thing: a message, a record, a function, …
        wire_dtype: what float32 tensors of forwards and backwards are narrowed to on their way.

    Raises:
        TypeError: it holds something that cannot travel (a generator, a lock, an open file).
    """
    file = io.BytesIO()
    buffers: list[Any] = []
    narrow = wire_dtype if isinstance(thing, Forward | Backward) else None
    try:
        _Pickler(file, buffers, narrow).dump(thing)
    except (pickle.PicklingError, AttributeError, ValueError, RuntimeError) as error:
        raise TypeError(f"this cannot travel: {error}") from error
    return file.getvalue(), [np.asarray(buffer) for buffer in buffers]


def unpack(parcel: Parcel, writable: bool = False) -> Any:
    """What was packed. Its tensors may be written to only if they are unpacked ``writable``."""
    head, buffers = parcel
    return pickle.loads(head, buffers=[buffer.copy() for buffer in buffers] if writable else buffers)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # likewise
    def __init__(self, file: io.BytesIO, buffers: list[Any], wire_dtype: torch.dtype | None) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self._wire_dtype = wire_dtype

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is Tensor and thing.layout is torch.strided and not thing.is_quantized:
            return _reduced(thing, self._wire_dtype)
        if isinstance(thing, BaseException):
            return _error, _reduced_error(thing)
        return super().reducer_override(thing)


def _reduced(tensor: Tensor, wire_dtype: torch.dtype | None) -> tuple[Any, ...]:
    """A tensor as its bytes, whatever its dtype (NumPy has no bfloat16), and what they mean."""
    sent = tensor.detach().cpu()
    if wire_dtype is not None and sent.dtype is torch.float32:
        sent = sent.to(wire_dtype)
    sent = sent.contiguous().resolve_conj().resolve_neg()
    array: Any = sent.reshape(-1).view(torch.uint8).numpy()
    leaf = tensor.requires_grad and tensor.is_leaf
    return _tensor, (pickle.PickleBuffer(array), sent.dtype, tuple(tensor.shape), tensor.dtype, leaf)


def _tensor(
    buffer: Any, sent: torch.dtype, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool
) -> Tensor:
    if 0 in shape:
        tensor = torch.empty(shape, dtype=dtype)
    else:
        flat = torch.from_numpy(np.frombuffer(buffer, np.uint8))
        tensor = flat.view(sent).reshape(shape).to(dtype)
    return tensor.requires_grad_() if requires_grad else tensor


def _reduced_error(error: BaseException) -> tuple[bytes | None, str, str]:
    """An error that can be pickled as it is; any as words; and where it was raised."""
    where = "".join(traceback.format_exception(error)) if error.__traceback__ else ""
    try:
        data: bytes | None = cloudpickle.dumps(error)
        cloudpickle.loads(data)  # an error with arguments of its own often cannot be made again
    except Exception:
        data = None
    return data, f"{type(error).__name__}: {error}", where


def _error(data: bytes | None, words: str, where: str) -> BaseException:
    error: BaseException = RuntimeError(words) if data is None else pickle.loads(data)
    if where and not getattr(error, "__notes__", None):
        error.add_note(f"raised in another process:\n{where}")
    return error


def tolerate_read_only() -> None:
    """Have torch say now, unheard, what it says once a process of arrays that cannot be written to."""
    array = np.zeros(1, np.uint8)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(array)


def ship_by_value() -> None:
    """Have the source of the user's ``FILE.py`` travel, and that of its neighbours: other hosts lack them."""
    tasks = [m for name, m in list(sys.modules.items()) if name.startswith("akkordeon_task_")]
    homes = {folder for task in tasks if (folder := _folder(task)) is not None}
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and _folder(module) in homes and module.__name__ != "__main__":
            cloudpickle.register_pickle_by_value(module)


def _folder(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve().parent if isinstance(file, str) else None
