"""Sources of batches: tensors cut by slicing, loaders with their own randomness, digits, MNIST.

Letters: N samples, B samples of one batch, k the number of an epoch, counted from 0.
"""

from __future__ import annotations

import copy
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from akkordeon.errors import DataError

__all__ = [
    "Batches",
    "Dataset",
    "Examples",
    "Tensors",
    "as_batches",
    "digits",
    "is_indexable",
    "mnist",
    "private_loader",
    "read_idx",
]

Examples: TypeAlias = tuple[Tensor, Tensor]
"""Inputs x and labels y of equal length."""

Tensors: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What x or y of a batch may be; in a tuple or dict every tensor has the same length."""

_Bytes: TypeAlias = npt.NDArray[np.uint8]


# --- batches cut from tensors ------------------------------------------------------------------------


@dataclass(eq=False)
class Batches:
    """Cuts x and y, which are in memory, into batches; iterating again gives the next epoch.

    A batch is a slice: without ``shuffle`` a view of x and y (whoever writes into it writes into the
    data), with ``shuffle`` one ``index_select`` with the epoch's permutation. The permutation depends on
    ``seed`` and the number of the epoch alone, and no global random state is read or moved.

    Args:
        x: inputs, (N, ...), or a tuple or dict of such tensors.
        y: labels, (N, ...), or a tuple or dict of such tensors.
        batch_size: B; the last batch of an epoch has what is left.
        shuffle: a new order in every epoch.
        seed: of the permutations, any integer.
        drop_last: leave out a last batch that is smaller than B.

    Raises:
        DataError: x or y is no tensor, they differ in length or are empty, ``batch_size`` is below 1,
            or ``drop_last`` leaves no batch.
    """

    x: Tensors = field(repr=False)
    y: Tensors = field(repr=False)
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    drop_last: bool = False
    samples: int = field(init=False)
    """N, the samples of one epoch; with ``drop_last`` up to B - 1 of them are left out."""
    _next_epoch: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        self.samples = _common_length(self.x, self.y)
        if self.batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {self.batch_size}")
        if len(self) == 0:
            raise DataError(
                f"drop_last leaves no batch of {self.batch_size} out of {self.samples} samples; "
                "choose a smaller batch_size or keep the last batch"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensors, Tensors]]:
        """The next epoch; the first call gives ``epoch(0)``."""
        k = self._next_epoch
        self._next_epoch += 1
        return self.epoch(k)

    def epoch(self, k: int) -> Iterator[tuple[Tensors, Tensors]]:
        """The batches of epoch ``k``, the same ones at every call; does not move ``iter``.

        Raises:
            DataError: ``k`` is negative.
        """
        if k < 0:
            raise DataError(f"epochs are counted from 0, got {k}")
        order = _permutation(self.samples, self.seed, k) if self.shuffle else None
        cuts = (slice(b * self.batch_size, (b + 1) * self.batch_size) for b in range(len(self)))
        return ((_rows(self.x, cut, order), _rows(self.y, cut, order)) for cut in cuts)

    def take(self, n: int) -> Batches:
        """The first ``n`` samples (views).

        Raises:
            DataError: ``n`` is not between 1 and N.
        """
        if not 1 <= n <= self.samples:
            raise DataError(f"cannot take {n} of {self.samples} samples")
        return replace(self, x=_map(lambda t: t[:n], self.x), y=_map(lambda t: t[:n], self.y))

    def part(self, i: int, n: int) -> Batches:
        """The i-th of ``n`` parts: samples i, i + n, i + 2n, ...; every part shuffles in its own way.

        The parts are disjoint, together they are all samples, and their sizes differ by one at most.
        A part owns its samples: shipped to another process, it does not take the other parts along.

        Raises:
            DataError: ``i`` is not between 0 and n - 1, or there are fewer than ``n`` samples.
        """
        if not 0 <= i < n <= self.samples:
            raise DataError(f"cannot give part {i} of {n} of {self.samples} samples (parts count from 0)")
        x, y = (_map(lambda t: t[i::n].contiguous(), tensors) for tensors in (self.x, self.y))
        return replace(self, x=x, y=y, seed=_derived_seed(self.seed, i, n) if n > 1 else self.seed)

    def with_batch_size(self, batch_size: int) -> Batches:
        """The same samples in batches of another size, from epoch 0."""
        return replace(self, batch_size=batch_size)

    def with_seed(self, seed: int) -> Batches:
        """The same samples in other orders, from epoch 0."""
        return replace(self, seed=seed)


def _derived_seed(seed: int, *key: int) -> int:
    """A seed of 64 bits; unlike ``seed + k``, neighbouring seeds and keys have nothing in common."""
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=key)  # which refuses negative seeds
    return int(sequence.generate_state(1, np.uint64)[0])


def _permutation(n: int, seed: int, *key: int) -> Tensor:
    generator = torch.Generator().manual_seed(_derived_seed(seed, *key))
    return torch.randperm(n, generator=generator)


def _map(function: Callable[[Tensor], Tensor], tensors: Tensors) -> Tensors:
    if isinstance(tensors, dict):
        return {key: function(t) for key, t in tensors.items()}
    if isinstance(tensors, tuple):
        return tuple(function(t) for t in tensors)
    return function(tensors)


def _rows(tensors: Tensors, cut: slice, order: Tensor | None) -> Tensors:
    if order is None:
        return _map(lambda t: t[cut], tensors)
    rows = order[cut]
    return _map(lambda t: t.index_select(0, rows.to(t.device)), tensors)


def _leaves(name: str, tensors: object) -> dict[str, Tensor]:
    """The tensors by name: x, or x[0], x[1], or x['image'], ...; whatever else raises."""
    if isinstance(tensors, dict):
        leaves = {f"{name}[{key!r}]": t for key, t in tensors.items()}
    elif isinstance(tensors, tuple):
        leaves = {f"{name}[{i}]": t for i, t in enumerate(tensors)}
    else:
        leaves = {name: tensors}
    for leaf, t in leaves.items():
        if not isinstance(t, Tensor) or t.ndim == 0:
            got = f"a {type(t).__name__}" if not isinstance(t, Tensor) else "a tensor without dimensions"
            raise DataError(f"{leaf} must be a tensor with one row per sample, got {got}")
    return leaves


def _common_length(x: object, y: object) -> int:
    lengths = {name: len(t) for name, t in (_leaves("x", x) | _leaves("y", y)).items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise DataError(f"x and y differ in their number of samples ({sizes}); give every input its label")
    samples = max(lengths.values(), default=0)
    if samples == 0:
        raise DataError("x and y hold no samples (0); a source needs at least one")
    return samples


# --- sources of other forms --------------------------------------------------------------------------


def as_batches(source: object, batch_size: int, seed: int = 0) -> Iterable[Any]:
    """Makes of ``source`` something that can be iterated to get (x, y) batches.

    Args:
        source: a tuple (x, y) of tensors, which is cut into :class:`Batches`; a ``DataLoader``, which is
            made private (:func:`private_loader`); :class:`Batches` or any other iterable of batches (a
            list, a generator, an endless stream), which stays as it is.
        batch_size: for a tuple (x, y) only: everything else has batches already.
        seed: for a tuple (x, y) and a ``DataLoader``.

    Raises:
        DataError: ``source`` cannot be a source of batches.
    """
    if isinstance(source, DataLoader):
        return private_loader(source, seed)
    if isinstance(source, tuple) and _is_examples(source):
        x, y = source
        return Batches(x, y, batch_size, seed=seed)
    if isinstance(source, list | tuple):
        _check_pairs(source)
        return source
    # These can be iterated as well, but never to (x, y) batches.
    if not isinstance(source, Iterable) or isinstance(source, Tensor | str | bytes | Mapping):
        raise DataError(
            f"a {type(source).__name__} is no source of batches; "
            "give (x, y), Batches, a DataLoader or an iterable of (x, y) batches"
        )
    return source


def is_indexable(source: object) -> bool:
    """Whether the batches of ``source`` are all in memory, so that reading them can never stall."""
    return isinstance(source, Batches | list | tuple)


def _is_examples(source: tuple[object, ...]) -> bool:
    if len(source) != 2 or not isinstance(source[0], Tensor | tuple | dict):
        return False
    if isinstance(source[0], tuple) and isinstance(source[1], tuple):
        raise DataError(
            "a tuple of 2 tuples may be (x, y) or two batches; "
            "write Batches(x, y, batch_size) for the one and a list of batches for the other"
        )
    return True


def _check_pairs(batches: Sequence[object]) -> None:
    if not batches:
        raise DataError(f"a {type(batches).__name__} of 0 batches is no source; give at least one batch")
    for b, batch in enumerate(batches):
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise DataError(
                f"item {b} of the {type(batches).__name__} is a {type(batch).__name__}, not a batch (x, y); "
                "tensors that are to be cut into batches are given as a tuple (x, y)"
            )


def private_loader(loader: DataLoader[Any], seed: int = 0) -> DataLoader[Any]:
    """A copy of ``loader`` that neither moves nor reads the global random state, nor moves the loader's.

    ``iter(DataLoader)`` draws a seed for its workers, even when it has none and does not shuffle, and a
    sampler without a generator draws another. The copy draws both from its own generator, so two copies
    with one seed give the same batches, and every epoch differs. A generator that the user gave to the
    loader or its sampler is copied as it stands: the copy gives the batches that ``loader`` would give.

    Whatever random numbers the data set itself draws in ``__getitem__`` are its own affair.

    Args:
        loader: of torch; with workers or without, of any kind of data set.
        seed: of the copy's generator.
    """
    fresh = torch.Generator().manual_seed(_derived_seed(seed))
    twins: dict[torch.Generator, torch.Generator] = {}

    def own(generator: torch.Generator | None) -> torch.Generator:
        if generator is None:
            return fresh
        if generator not in twins:  # the loader and its sampler share one: so do the copies
            twins[generator] = torch.Generator(generator.device).set_state(generator.get_state())
        return twins[generator]

    private = copy.copy(loader)
    # DataLoader.__setattr__ refuses new samplers; the copy's attributes are written past it. Workers that
    # persist belong to the loader that started them.
    vars(private).update(
        generator=own(loader.generator),
        sampler=_private_sampler(loader.sampler, own),
        batch_sampler=_private_sampler(loader.batch_sampler, own),
        _iterator=None,
    )
    return private


def _private_sampler(sampler: Any, own: Callable[[torch.Generator | None], torch.Generator]) -> Any:
    """``sampler`` and the samplers it wraps, those that hold a generator of torch's replaced by copies."""
    attributes = getattr(sampler, "__dict__", {})
    changes = {}
    if "generator" in attributes and isinstance(attributes["generator"], torch.Generator | None):
        changes["generator"] = own(attributes["generator"])
    if "sampler" in attributes:
        changes["sampler"] = _private_sampler(attributes["sampler"], own)
    if changes:
        sampler = copy.copy(sampler)
        vars(sampler).update(changes)
    return sampler


# --- data sets ---------------------------------------------------------------------------------------


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
    order = _permutation(len(labels), seed)
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
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


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
