"""Data sets to begin with: the digits of scikit-learn, MNIST and others of its format.

Letter: N samples.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from akkordeon.core.errors import DataError
from akkordeon.data.batches import permutation

__all__ = ["Dataset", "Examples", "digits", "mnist", "read_idx"]

Examples: TypeAlias = tuple[Tensor, Tensor]
"""Inputs x and labels y of equal length."""

_Bytes: TypeAlias = npt.NDArray[np.uint8]


UNPACKED_BYTES_MAX = 1_000_000_000
"""Of one packed file; MNIST's largest has 47 MB. A few bytes can claim to be any number."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples to train with and others to test with: x (N, features) float32, y (N,) int64."""

    name: str
    train: Examples = field(repr=False)
    test: Examples = field(repr=False)


def digits(seed: int = 0) -> Dataset:
    """The 8×8 handwritten digits that scikit-learn carries: 1437 to train, 360 to test; no download.

    Args:
        seed: of the split, any integer.

    Returns:
        x (N, 64) float32 between 0 and 1, y (N,) int64 between 0 and 9.
    """
    from sklearn.datasets import load_digits  # a second to import: only those who ask for it wait

    images, labels = load_digits(return_X_y=True)
    order = permutation(len(labels), seed)
    x = torch.from_numpy(images).float().div_(16)[order]
    y = torch.from_numpy(labels).long()[order]
    return Dataset("digits", train=(x[:1437], y[:1437]), test=(x[1437:], y[1437:]))


def mnist(folder: str | Path, standardise: bool = False, name: str = "mnist") -> Dataset:
    """MNIST, or another data set of its format such as Fashion-MNIST, from files in ``folder``.

    The files are the four IDX files (``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte`` and so on,
    plain or ``.gz``), or else ``mnist_train.csv`` and ``mnist_test.csv``: a label and 784 pixels a line,
    with or without a line of headings. For ``name="fashion-mnist"`` it is ``fashion-mnist_train.csv``.

    Args:
        folder: where the files are.
        standardise: subtract the mean of all training pixels and divide by their standard deviation.
        name: of the data set: mnist or fashion-mnist.

    Returns:
        x (N, 784) float32, between 0 and 1 unless standardised; y (N,) int64 between 0 and 9.

    Raises:
        DataError: a file is missing, damaged or of another format, or the labels do not fit the images.
    """
    folder = Path(folder).expanduser()
    train, test = (_mnist_split(folder, name, split) for split in ("train", "test"))
    if standardise:
        std, mean = torch.std_mean(train[0])
        train, test = (((x - mean) / std, y) for x, y in (train, test))
    return Dataset(name, train, test)


def _mnist_split(folder: Path, name: str, split: str) -> Examples:
    prefix = {"train": "train", "test": "t10k"}[split]
    images = [f"{prefix}-images-idx3-ubyte", f"{prefix}-images.idx3-ubyte"]
    labels = [f"{prefix}-labels-idx1-ubyte", f"{prefix}-labels.idx1-ubyte"]
    table = f"{name}_{split}.csv"
    images_path, labels_path, table_path = (_find(folder, names) for names in (images, labels, [table]))
    if images_path and labels_path:
        return _from_idx(images_path, labels_path)
    if table_path:
        return _from_csv(table_path)
    raise DataError(
        f"the folder {folder} {'lacks a file' if folder.is_dir() else 'does not exist'}: looked for "
        f"{' or '.join(labels if images_path else images)} or {table} (plain or .gz); "
        f"`akkordeon data {name} --data-dir {folder}` downloads what is needed"
    )


def _find(folder: Path, names: Iterable[str]) -> Path | None:
    paths = (folder / f"{name}{end}" for name in names for end in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _from_idx(images_path: Path, labels_path: Path) -> Examples:
    images, labels = read_idx(images_path, ndim=3), read_idx(labels_path, ndim=1)
    if images.shape[1:] != (28, 28):
        size = "×".join(map(str, images.shape[1:]))
        raise DataError(f"{images_path} has images of {size} pixels, expected 28×28")
    if len(images) != len(labels):
        raise DataError(f"{labels_path} has {len(labels)} labels for {len(images)} images of {images_path}")
    return _examples(images.reshape(-1, 28 * 28), labels, labels_path)


def _examples(pixels: _Bytes, labels: _Bytes, path: Path) -> Examples:
    """Makes x (N, 784) and y (N,) of the bytes; ``path`` is the file of the labels."""
    if len(labels) == 0:
        raise DataError(f"{path} holds no labels (0); it must have one for every image")
    if labels.max() > 9:
        raise DataError(f"{path} has the label {labels.max()}, expected 0 to 9")
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255)
    return x, torch.from_numpy(labels.astype(np.int64))


def read_idx(path: str | Path, ndim: int | None = None) -> _Bytes:
    """Reads a file of unsigned bytes in the IDX format, plain or gzip (told by its content, not its name).

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, the size of each
    (big-endian, 4 bytes), the values.

    Args:
        path: of the file.
        ndim: how many dimensions it must have, if that is known.

    Returns:
        uint8, of the shape that the file states; read-only.

    Raises:
        DataError: the file is missing, damaged, cut short, too long or of another format.
    """
    path = Path(path)
    content = _content(path)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or content[3] != (ndim or content[3]):
        expected = f"000008{ndim:02x}" if ndim else "000008.."
        got = content[:4].hex() or "nothing"
        raise DataError(f"{path} is not the IDX file it should be: it begins with {got}, expected {expected}")
    start = 4 + 4 * content[3]
    # A header cut short leaves whole sizes missing: then the file is shorter than `start`, told below.
    shape = np.frombuffer(content[4 : min(start, len(content) // 4 * 4)], ">u4").tolist()
    expected_bytes = start + math.prod(shape)
    if len(content) != expected_bytes:
        raise DataError(
            f"{path} has {len(content)} bytes, expected {expected_bytes} for the sizes "
            f"{shape} in its header; delete it and fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return _unpacked(content, path) if content[:2] == b"\x1f\x8b" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _unpacked(content: bytes, path: Path) -> bytes:
    with gzip.open(io.BytesIO(content)) as file:
        unpacked = file.read(UNPACKED_BYTES_MAX + 1)
    if len(unpacked) > UNPACKED_BYTES_MAX:
        raise DataError(
            f"{path} unpacks to more than {UNPACKED_BYTES_MAX / 1e9:g} GB, which no data set of this format "
            "does; unpack it by hand if you trust it"
        )
    return unpacked


def _from_csv(path: Path) -> Examples:
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip('"')[:1].isalpha():  # a line of headings
            text = text.partition("\n")[2]
        if not text.strip():
            raise ValueError("it holds 0 lines of numbers")
        table = np.loadtxt(io.StringIO(text), np.uint8, comments=None, delimiter=",", ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is not a table of a label and 784 pixels a line: {error}") from error
    if table.shape[1] != 1 + 28 * 28:
        raise DataError(f"{path} has {table.shape[1]} numbers a line, expected 785: a label and 784 pixels")
    return _examples(table[:, 1:], table[:, 0], path)
