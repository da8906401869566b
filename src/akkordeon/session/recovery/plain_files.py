"""Plain data as files: JSON says what it is, and the tensors in it are in a safetensors file beside.

    NAME.json           numbers, strings, lists, …, and the names of tensors
    NAME.safetensors    the tensors, if there are any

Nothing here is pickled, and to read it runs no code of whoever wrote it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from akkordeon.core.errors import DataError
from akkordeon.core.payload import bytes_of
from akkordeon.core.plain_state import from_json_form, json_form

__all__ = ["JSON", "TENSORS", "fits", "read_plain", "write_plain", "write_tensors"]

JSON, TENSORS = ".json", ".safetensors"

Read = Callable[[str], bytes]
"""Gives what is in a file, by its name in a folder."""


def write_plain(folder: Path, name: str, value: Any, what: str) -> None:
    """Write plain data.

    Args:
        folder: where the files go.
        name: of the files, without their endings.
        value: the data.
        what: it is, for errors.

    Raises:
        DataError: there is something in it that files cannot hold.
        OSError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}

    def keep(tensor: Tensor) -> Any:
        if not fits(tensor):
            return _in_parts(tensor, keep)
        name = str(len(tensors))
        tensors[name] = tensor
        return name

    try:
        text = json.dumps(json_form(value, keep), allow_nan=False)
    except TypeError as error:
        raise DataError(f"{what} cannot be kept in a file: {error}") from error
    (folder / f"{name}{JSON}").write_text(text, encoding="utf-8")
    if tensors:
        write_tensors(folder / f"{name}{TENSORS}", tensors)


def read_plain(read: Read, name: str) -> Any:
    """Plain data that :func:`write_plain` wrote.

    Raises:
        Exception: it did not write this.
    """
    tensors: dict[str, Tensor] = {}

    def tensor_of(kept: Any) -> Tensor:
        if isinstance(kept, dict):
            return _from_parts(kept, tensor_of)
        if not tensors:
            tensors.update(safetensors.torch.load(read(f"{name}{TENSORS}")))
        return tensors[kept]

    return from_json_form(json.loads(read(f"{name}{JSON}")), tensor_of)


# ── tensors ──────────────────────────────────────────────────────────────────────────────────────────


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that safetensors can hold, by name.

    Raises:
        OSError: they cannot be written.
    """
    try:
        safetensors.torch.save_file(dict(zip(tensors, _apart(tensors.values()), strict=True)), path)
    except safetensors.SafetensorError as error:
        raise _as_os_error(error) from error


def _as_os_error(error: safetensors.SafetensorError) -> OSError:
    """What the system said, which safetensors tells in words of its own."""
    number = re.search(r"os error ([0-9]+)", str(error))
    return OSError(str(error)) if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def _apart(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """Each in memory that is all its own, as safetensors wants it; copied only where it is not."""
    seen: set[int] = set()
    for tensor in tensors:
        dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = dense.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != dense.nbytes:
            dense = dense.clone()
        seen.add(dense.untyped_storage().data_ptr())
        yield dense


def fits(tensor: Tensor) -> bool:
    """Whether safetensors can hold it."""
    return tensor.layout is torch.strided and not tensor.is_quantized and _knows(tensor.dtype)


@cache
def _knows(dtype: torch.dtype) -> bool:
    try:
        safetensors.torch.load(safetensors.torch.save({"": torch.empty(1, dtype=dtype)}))
    except Exception:  # of every version its own
        return False
    return True


def _in_parts(tensor: Tensor, keep: Callable[[Tensor], Any]) -> dict[str, Any]:
    """What stands for a tensor of a dtype that safetensors does not know: its bytes, dtype and shape.

    Raises:
        TypeError: it is no dense tensor.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"it holds a tensor that is {kind}, and only dense ones can be kept")
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "bytes": keep(bytes_of(tensor))}


def _from_parts(parts: Mapping[str, Any], tensor_of: Callable[[Any], Tensor]) -> Tensor:
    dtype = getattr(torch, parts["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"there is no dtype {parts['dtype']!r}")
    flat: Tensor = tensor_of(parts["bytes"])
    try:
        return flat.view(dtype).reshape(parts["shape"])
    except RuntimeError as error:
        raise ValueError(str(error)) from error
