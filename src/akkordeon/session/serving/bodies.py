"""What travels over HTTP, as tensors and back: JSON, and arrays in NumPy's format.

Inputs come as arrays of numbers, a row each; where a network takes several, as an object of such arrays by
name, or as a list of them.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from akkordeon.core.errors import DataError, explain
from akkordeon.core.numerics.forms import signature
from akkordeon.core.payload import Payload, rebuilt, samples, tensors
from akkordeon.session.http.json_bodies import finite, kind_in_words

__all__ = ["NUMPY", "Inputs", "as_json_value", "numpy_bytes", "targets_of"]

NUMPY = "application/x-npy"


class Inputs:
    """Makes inputs of what a request brings.

    Args:
        example: a batch of inputs, whose names and dtypes are those of all; without one an input is an array
            of floats, or several by name.
    """

    def __init__(self, example: Payload | None = None) -> None:
        self._example = example

    def from_json(self, value: Any) -> Payload:
        """Inputs of at least one row.

        Raises:
            DataError: they are none.
        """
        if self._example is None:
            return _with_rows(_arrays("inputs", value, torch.get_default_dtype()))
        return _with_rows(_like("inputs", value, self._example))

    def from_numpy(self, content: bytes) -> Payload:
        """Likewise, of an array.

        Raises:
            DataError: it is none.
        """
        if not (self._example is None or isinstance(self._example, Tensor)):
            raise DataError("the network takes several inputs: send them as JSON, by name")
        array = _array(content)
        if self._example is not None:
            array = _cast("inputs", array, self._example.dtype)
        elif array.is_floating_point():
            array = array.to(torch.get_default_dtype())
        return _with_rows(array)


def targets_of(value: Any, rows: int, dtype: torch.dtype | None = None) -> Payload:
    """Targets, a row for each of the inputs.

    Args:
        value: arrays of numbers.
        rows: of the inputs.
        dtype: of the targets; if not given, whole numbers are int64 and others float32.

    Raises:
        DataError: they are none, or others in number.
    """
    targets = _with_rows(_arrays("targets", value, dtype))
    if samples(targets) != rows:
        raise DataError(f"targets are {signature(targets)}, for {rows} rows of inputs")
    return targets


def _like(what: str, value: Any, like: Payload) -> Payload:
    """Arrays in the form of a payload."""
    if isinstance(like, Tensor):
        return _tensor(what, value, like.dtype)
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise DataError(f"{what} are an object with {', '.join(like)}, got {kind_in_words(value)}")
        return rebuilt(like, [_like(f"{what}.{name}", value[name], part) for name, part in like.items()])
    if not isinstance(value, list) or len(value) != len(like):
        raise DataError(f"{what} are a list of {len(like)} arrays, got {kind_in_words(value)}")
    parts = enumerate(zip(value, like, strict=True))
    return rebuilt(like, [_like(f"{what}[{i}]", each, part) for i, (each, part) in parts])


def _arrays(what: str, value: Any, dtype: torch.dtype | None) -> Payload:
    """An array, or several by name."""
    if isinstance(value, dict) and value:
        return {name: _tensor(f"{what}.{name}", each, dtype) for name, each in value.items()}
    return _tensor(what, value, dtype)


def _tensor(what: str, value: Any, dtype: torch.dtype | None) -> Tensor:
    if not isinstance(value, list):
        raise DataError(f"{what} are an array of numbers, got {kind_in_words(value)}")
    try:
        tensor = torch.tensor(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(f"{what} are no array of numbers: {explain(error)}") from None
    return tensor if dtype is None else _cast(what, tensor, dtype)


def _cast(what: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point() and not dtype.is_floating_point:
        raise DataError(f"{what} are whole numbers, got {signature(tensor)}")
    return tensor.to(dtype)


def _with_rows(payload: Payload) -> Payload:
    counts = {len(tensor) if tensor.dim() else 0 for tensor in tensors(payload)}
    if len(counts) != 1 or 0 in counts:
        raise DataError(
            f"of every array there is a row for each example, at least one; got {signature(payload)}"
        )
    return payload


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────


def as_json_value(payload: Payload) -> Any:
    """Outputs as JSON has them; what it has no number for (NaN, infinity) becomes null."""
    if isinstance(payload, Tensor):
        plain = payload.tolist()
        return plain if bool(payload.isfinite().all()) else finite(plain)
    if isinstance(payload, dict):
        return {str(name): as_json_value(part) for name, part in payload.items()}
    return None if payload is None else [as_json_value(part) for part in payload]


# ── NumPy ────────────────────────────────────────────────────────────────────────────────────────────


def _array(content: bytes) -> Tensor:
    """The array in NumPy's format; nothing is unpickled, and no more memory taken than there are bytes."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its format is {version[0]}.{version[1]}, which is not for plain numbers")
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(file)
        if dtype.kind not in "biuf":
            raise ValueError(f"it holds {dtype}, and no numbers")
        promised, there = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
        if promised != there:
            raise ValueError(f"its header promises {promised:,} bytes of numbers, it has {there:,}")
        flat = np.frombuffer(content, dtype, offset=file.tell()).astype(dtype.newbyteorder("="))
        return torch.from_numpy(flat.reshape(shape, order="F" if is_fortran else "C"))
    except Exception as error:  # whatever NumPy makes of bytes that somebody has sent
        raise DataError(f"the body is no array of numbers in NumPy's format: {explain(error)}") from None


def numpy_bytes(payload: Payload) -> bytes:
    """Outputs in NumPy's format.

    Raises:
        DataError: they are several arrays.
    """
    if not isinstance(payload, Tensor):
        raise DataError(f"the network gives several arrays, {signature(payload)}: send JSON to have them so")
    file = io.BytesIO()
    tensor = payload.float() if payload.dtype is torch.bfloat16 else payload
    np.save(file, tensor.cpu().numpy(), allow_pickle=False)
    return file.getvalue()
