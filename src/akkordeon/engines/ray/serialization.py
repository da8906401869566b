"""Anything as bytes and buffers: tensors as NumPy arrays, errors so that they arrive, all else pickled.

What is serialized is ``(head, buffers)``. Ray moves the buffers through shared memory without copying them,
so a tensor that was deserialized may lie in memory that is not ours: it must not be written to, which is what
the protocol asks of every tensor in a message. What is to be written to is deserialized ``writable``.

A message is serialized with its receiver's address. There are thousands a second of them, so the common ones
have a pickler that calls Python for tensors alone, and a small one is plain bytes, for which Ray has a way of
its own.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from akkordeon.core.errors import explain
from akkordeon.core.messages import Backward, Evaluate, Forward, Message
from akkordeon.core.payload import bytes_of
from akkordeon.core.shard_messages import Fetch, Parameters, Push
from akkordeon.core.surgery.messages import Change
from akkordeon.core.well_formed import malformed
from akkordeon.engines.wire import narrowed, widened

__all__ = [
    "Envelope",
    "Serialized",
    "SerializedMessage",
    "deserialize",
    "pickle_by_value",
    "serialize",
    "serialize_message",
    "tolerate_read_only",
    "understood",
]

Serialized = tuple[bytes, list[NDArray[np.uint8]]]
"""The pickled thing, and the memory of its tensors."""

SerializedMessage = bytes | Serialized
"""The receiver's address and the message, one pickled after the other."""

INLINE = 512 * 1024
"""Bytes up to which a tensor is copied into its message, instead of going through shared memory beside it."""

PLAIN = frozenset({Backward, Evaluate, Fetch, Forward, Parameters, Push})
"""The messages that hold nothing of a class that the receiver might not know."""


def serialize(thing: Any, wire_dtype: torch.dtype | None = None) -> Serialized:
    """Anything as bytes and buffers.

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


def deserialize(serialized: Serialized, writable: bool = False) -> Any:
    """What was serialized. Its tensors may be written to only if it is deserialized ``writable``."""
    head, buffers = serialized
    return pickle.loads(head, buffers=[buffer.copy() for buffer in buffers] if writable else buffers)


def understood(read: Callable[[], Any], refuse: Callable[[str], None]) -> Any:
    """What ``read`` gives, if it is what its class says; else None, and ``refuse`` is told why it is not."""
    try:
        thing = read()
    except Exception as error:
        refuse(f"what came could not be read: {explain(error)}")
        return None
    wrong = malformed(thing)
    if wrong is not None:
        refuse(f"what came was refused: {wrong}")
    return thing if wrong is None else None


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────


def serialize_message(to: str, message: Message, wire_dtype: torch.dtype | None = None) -> SerializedMessage:
    """A message with the address of its receiver, as :func:`serialize` would have it.

    Raises:
        TypeError: it holds something that cannot travel.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickle.dump(to, file)
    narrow = wire_dtype if isinstance(message, Forward | Backward) else None

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes <= INLINE:
            return True
        buffers.append(buffer)
        return False

    try:
        if type(message) not in PLAIN:
            raise pickle.PicklingError
        pickler = _FastPickler(file, 5, buffer_callback=stays_inside)
        pickler.dispatch_table = _table(narrow)
        pickler.dump(message)
    except pickle.PicklingError:
        if isinstance(message, Change):  # which may hold a function of the user's
            pickle_by_value()
        head, rest = serialize(message, wire_dtype)
        return pickle.dumps(to) + head, rest
    head = file.getvalue()
    return (head, [np.asarray(buffer) for buffer in buffers]) if buffers else head


class Envelope:
    """A message that came: for whom it is, and then the message itself, which may not be readable."""

    def __init__(self, serialized: SerializedMessage, writable: bool = False) -> None:
        head, buffers = (serialized, []) if isinstance(serialized, bytes) else serialized
        if writable:
            buffers = [buffer.copy() for buffer in buffers]
        self._buffers = buffers
        self._file = io.BytesIO(head)
        self.to: str = pickle.load(self._file)

    def message(self) -> Any:
        """The message; its tensors must not be written to, unless this was made ``writable``."""
        return pickle.load(self._file, buffers=self._buffers)


class _FastPickler(pickle.Pickler):
    """The C pickler, as it is, with a table of its own."""


@cache
def _table(wire_dtype: torch.dtype | None) -> dict[type, Callable[[Any], Any]]:
    return {**copyreg.dispatch_table, Tensor: partial(_reduced_dense, wire_dtype=wire_dtype)}


def _reduced_dense(tensor: Tensor, wire_dtype: torch.dtype | None) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise pickle.PicklingError
    return _reduced(tensor, wire_dtype)


# ── anything ─────────────────────────────────────────────────────────────────────────────────────────


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # which has no types
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
    sent = narrowed(tensor.detach().cpu(), wire_dtype)
    array: Any = bytes_of(sent).numpy()
    leaf = tensor.requires_grad and tensor.is_leaf
    return _tensor, (pickle.PickleBuffer(array), sent.dtype, tuple(tensor.shape), tensor.dtype, leaf)


def _tensor(
    buffer: Any, sent: torch.dtype, shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool
) -> Tensor:
    if 0 in shape:
        tensor = torch.empty(shape, dtype=dtype)
    else:
        flat = torch.from_numpy(np.frombuffer(buffer, np.uint8))
        tensor = widened(flat.view(sent), shape, dtype)
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
    error: BaseException = RuntimeError(words)
    if data is not None:
        with suppress(Exception):  # its class may be of a package that this machine lacks
            error = pickle.loads(data)
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


def pickle_by_value() -> None:
    """Have the user's ``FILE.py`` and its neighbours pickled with their source: other hosts lack them."""
    tasks = [m for name, m in list(sys.modules.items()) if name.startswith("akkordeon_task_")]
    if not tasks:
        return
    folders = {folder for task in tasks if (folder := _folder(task)) is not None}
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and _folder(module) in folders and module.__name__ != "__main__":
            cloudpickle.register_pickle_by_value(module)


def _folder(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve().parent if isinstance(file, str) else None
