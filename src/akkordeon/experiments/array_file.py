"""Inputs and outputs of a network as ``.npy`` files."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from akkordeon.core.errors import DataError
from akkordeon.core.numerics.forms import signature
from akkordeon.session.recovery.durable import whole_file

__all__ = ["load_array", "save_array", "signature_of_rows"]


def load_array(path: Path, like: object) -> Tensor:
    """The inputs in a ``.npy`` file, as a tensor of the dtype that the network is used to.

    Args:
        path: of the file.
        like: inputs of the task.

    Raises:
        DataError: the file is missing, damaged or empty, or of another kind of number.
    """
    if not isinstance(like, Tensor):
        raise DataError("the task's inputs are several tensors; use session.predict in Python")
    try:
        with path.open("rb") as file:
            _check_promise(file)
            array = np.lib.format.read_array(file, allow_pickle=False)
        tensor = torch.from_numpy(array)
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read as an array of numbers: {why}") from error
    if not tensor.dim() or not len(tensor):
        raise DataError(f"{path} holds no rows: its shape is {tuple(tensor.shape)}")
    if tensor.is_floating_point() != like.is_floating_point():
        raise DataError(f"{path} holds {array.dtype}, but the task's inputs are {signature_of_rows(like)}")
    return tensor.to(like.dtype)


def _check_promise(file: BinaryIO) -> None:
    """Refuse a header that promises more than the file has, before memory is asked for.

    Raises:
        ValueError: it does, or it is no header.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is {version[0]}.{version[1]}, which is not for plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    promised, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
    if promised > there and not dtype.hasobject:
        raise ValueError(f"its header promises {promised:,} bytes of numbers, it has {there:,}")
    file.seek(0)


def signature_of_rows(tensor: Tensor) -> str:
    """Dtype and shape in words, for any number of rows, as in ``float32 (N, 784)``."""
    return signature(tensor[:0]).replace("(0", "(N", 1)


def save_array(path: Path, tensor: Tensor) -> None:
    """Write a tensor as a ``.npy`` file.

    Raises:
        DataError: it cannot be written.
    """
    with whole_file(path) as part, part.open("wb") as file:
        np.save(file, tensor.numpy())
