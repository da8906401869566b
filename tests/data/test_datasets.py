"""Data sets: akkordeon.data.datasets."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from akkordeon.core.errors import DataError
from akkordeon.data import datasets
from akkordeon.data.datasets import Dataset, digits, mnist, read_idx

# --- digits ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("random_state")
def test_digits_are_split_in_a_shuffled_order_that_the_seed_decides() -> None:
    data = digits()
    check_forms(data, (1437, 64), (360, 64))
    assert torch.bincount(data.test[1], minlength=10).min() > 20  # unshuffled, classes come in runs
    assert torch.equal(data.train[0], digits().train[0])
    assert not torch.equal(data.train[0], digits(seed=1).train[0])


def test_digits_together_are_those_of_scikit_learn_each_once() -> None:
    from sklearn.datasets import load_digits

    data = digits()
    rows = torch.cat([torch.cat([x * 16, y[:, None].float()], 1) for x, y in (data.train, data.test)])
    images, labels = load_digits(return_X_y=True)
    expected = np.column_stack([images, labels]).tolist()
    assert sorted(rows.tolist()) == sorted(expected)


def check_forms(data: Dataset, train_shape: tuple[int, int], test_shape: tuple[int, int]) -> None:
    for (x, y), shape in ((data.train, train_shape), (data.test, test_shape)):
        assert (tuple(x.shape), tuple(y.shape)) == (shape, shape[:1])
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert (x.min(), x.max()) == (0, 1)


# --- MNIST -------------------------------------------------------------------------------------------


def idx(values: Any) -> bytes:
    array = np.asarray(values, np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def small_mnist(n: int, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    images[0, 0, :2] = 0, 255
    return images, random.permutation(np.arange(n, dtype=np.uint8) % 10)


IDX_FILES = {
    "train-images-idx3-ubyte": idx(small_mnist(12, 0)[0]),
    "train-labels-idx1-ubyte": idx(small_mnist(12, 0)[1]),
    "t10k-images-idx3-ubyte": idx(small_mnist(5, 1)[0]),
    "t10k-labels-idx1-ubyte": idx(small_mnist(5, 1)[1]),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def zipped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


def tables(head: str = "", end: str = "\n") -> dict[str, bytes]:
    def table(images: Any, labels: Any) -> bytes:
        rows = np.column_stack([labels, images.reshape(len(images), -1)])
        return (head + "".join(",".join(map(str, row)) + end for row in rows)).encode()

    return {"mnist_train.csv": table(*small_mnist(12, 0)), "mnist_test.csv": table(*small_mnist(5, 1))}


FORMS = {
    "plain": IDX_FILES,
    "gzip": zipped(IDX_FILES),
    "dot": {name.replace("-idx", ".idx"): content for name, content in IDX_FILES.items()},
    "dot gzip": zipped({name.replace("-idx", ".idx"): content for name, content in IDX_FILES.items()}),
    "gzip unpacked on the way": {f"{name}.gz": content for name, content in IDX_FILES.items()},
    "csv": tables(),
    "csv with headings": tables("label," + ",".join(f"pixel{i}" for i in range(784)) + "\n"),
    "csv from Windows": tables('\ufeff"label","1x1"\r\n', end="\r\n"),
    "csv with a byte order mark": tables("\ufeff"),
    "csv gzip": zipped(tables()),
}


@pytest.mark.parametrize("files", FORMS.values(), ids=FORMS.keys())
def test_mnist_reads_every_form_to_the_same_tensors(tmp_path: Path, files: dict[str, bytes]) -> None:
    data = mnist(write(tmp_path, files))
    check_forms(data, (12, 784), (5, 784))
    for examples, (images, labels) in ((data.train, small_mnist(12, 0)), (data.test, small_mnist(5, 1))):
        assert (examples[0] * 255).round().tolist() == images.reshape(-1, 784).tolist()
        assert examples[1].tolist() == labels.tolist()
    assert data.name == "mnist"


def test_fashion_mnist_is_read_under_its_own_name(tmp_path: Path) -> None:
    files = {f"fashion-{name}": content for name, content in tables().items()}
    assert mnist(write(tmp_path, files), name="fashion-mnist").name == "fashion-mnist"
    with pytest.raises(DataError, match="akkordeon data mnist --data-dir"):
        mnist(tmp_path)


def test_standardised_pixels_have_the_mean_and_deviation_of_the_training_images(tmp_path: Path) -> None:
    plain = mnist(write(tmp_path, IDX_FILES))
    data = mnist(tmp_path, standardise=True)
    assert data.train[0].mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train[0].std().item() == pytest.approx(1, abs=1e-5)
    x = plain.train[0]
    assert torch.allclose(data.test[0], (plain.test[0] - x.mean()) / x.std(), atol=1e-5)
    assert torch.equal(data.test[1], plain.test[1])


LABELS = "train-labels-idx1-ubyte"
IMAGES = "train-images-idx3-ubyte"
images, labels = small_mnist(12, 0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (IMAGES, IDX_FILES[IMAGES][:-1], ["9423 bytes", "expected 9424", "[12, 28, 28]"]),
        (IMAGES, IDX_FILES[IMAGES] + b"\0", ["9425 bytes", "expected 9424"]),
        (IMAGES, IDX_FILES[IMAGES][:10], ["10 bytes"]),
        (IMAGES, b"", ["begins with nothing", "expected 00000803"]),
        (IMAGES, b"<html>no such file</html>", ["begins with 3c68746d"]),
        (IMAGES, gzip.compress(IDX_FILES[IMAGES])[:-20], ["is damaged"]),
        (IMAGES, gzip.compress(IDX_FILES[IMAGES])[:-8] + bytes(8), ["is damaged", "CRC"]),
        (IMAGES, gzip.compress(IDX_FILES[IMAGES])[:30] + bytes(5000), ["is damaged"]),
        (IMAGES, b"\x1f\x8b", ["is damaged"]),
        (IMAGES, IDX_FILES[LABELS], ["begins with 00000801", "expected 00000803"]),
        (IMAGES, b"\x00\x00\x0d\x03" + IDX_FILES[IMAGES][4:], ["begins with 00000d03"]),
        (IMAGES, idx(images[:, :27]), ["27×28", "expected 28×28"]),
        (LABELS, idx(labels[:11]), ["11 labels", "12 images", IMAGES]),
        (LABELS, idx(np.where(labels == 3, 10, labels)), ["label 10", "0 to 9"]),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence_that_names_it(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    write(tmp_path, IDX_FILES | {name: content})
    with pytest.raises(DataError) as caught:
        mnist(tmp_path)
    assert all(word in str(caught.value) for word in [str(tmp_path / name), *words]), str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["0 lines"]),
        (b"label,1x1\n", ["0 lines"]),
        (b"7,0,255\n", ["3 numbers a line", "expected 785"]),
        (b"7,0,255\n7,0\n", ["columns"]),
        (b"7,0,256\n", ["256"]),
        (b"5.0,0,1\n", ["5.0"]),
        (b"-1,0,1\n", ["-1"]),
        (b"\xff\xfe\x00", ["decode"]),
        (b"10" + 784 * b",0" + b"\n", ["label 10"]),
    ],
)
def test_a_damaged_table_is_refused_in_a_sentence_that_names_it(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    write(tmp_path, tables() | {"mnist_train.csv": content})
    with pytest.raises(DataError) as caught:
        mnist(tmp_path)
    assert all(w in str(caught.value) for w in [str(tmp_path / "mnist_train.csv"), *words]), str(caught.value)


def test_a_missing_folder_is_told_with_the_command_that_fills_it(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    with pytest.raises(DataError) as caught:
        mnist(folder)
    told = str(caught.value)
    assert f"{folder} does not exist" in told
    assert f"`akkordeon data mnist --data-dir {folder}`" in told


@pytest.mark.parametrize("name", IDX_FILES)
def test_a_missing_file_is_told_by_the_names_that_were_looked_for(tmp_path: Path, name: str) -> None:
    (write(tmp_path, IDX_FILES) / name).unlink()
    table = "mnist_train.csv" if name.startswith("train") else "mnist_test.csv"
    with pytest.raises(DataError) as caught:
        mnist(tmp_path)
    for word in (name, name.replace("-idx", ".idx"), ".gz", table, "--data-dir"):
        assert word in str(caught.value)


def test_images_without_pictures_are_refused(tmp_path: Path) -> None:
    write(tmp_path, IDX_FILES | {IMAGES: idx(images[:0]), LABELS: idx(labels[:0])})
    with pytest.raises(DataError, match=r"holds no labels \(0\)"):
        mnist(tmp_path)


def test_idx_files_of_any_number_of_dimensions_are_read(tmp_path: Path) -> None:
    for ndim in (1, 2, 4):
        values = np.arange(2**ndim, dtype=np.uint8).reshape((2,) * ndim)
        assert read_idx(write(tmp_path, {"file": idx(values)}) / "file").tolist() == values.tolist()


def test_a_missing_idx_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing-there cannot be read: No such file"):
        read_idx(tmp_path / "nothing-there")


def test_a_file_that_unpacks_to_more_than_any_data_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "UNPACKED_BYTES_MAX", 100_000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(DataError, match="it begins with 00000000"):
        read_idx(tmp_path / "x.gz")
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(DataError, match=r"x.gz unpacks to more than 0.0001 GB"):
        read_idx(tmp_path / "x.gz")
