"""What a run leaves in a folder, and how to take it up again: weights, the task, the report.

    DIR/weights.safetensors   the last weights; keys are "gate/0.<name in the gate's module>"
    DIR/best.safetensors      the best ones, where they were kept
    DIR/task.json             how to make the task again
    DIR/report.jsonl          what was reported, a JSON object a line, the summary last

A file is written under another name and renamed when it is whole: what is there under its name is right.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from akkordeon.errors import DataError
from akkordeon.network import Network
from akkordeon.payload import signature

__all__ = [
    "BEST",
    "REPORT",
    "TASK",
    "WEIGHTS",
    "as_json",
    "load_array",
    "load_description",
    "load_weights",
    "make_folder",
    "save_array",
    "save_description",
    "save_weights",
    "signature_of_rows",
    "whole_file",
]

WEIGHTS, BEST = "weights.safetensors", "best.safetensors"
TASK, REPORT = "task.json", "report.jsonl"

States = Mapping[str, Mapping[str, Tensor]]
"""Weights and buffers by gate address and name in the gate's module."""


def make_folder(path: Path) -> Path:
    """The folder, made if need be.

    Raises:
        DataError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be made: {error.strerror}") from error
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name under which to write a file that is to appear at ``path`` once it is whole.

    Raises:
        DataError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────


def save_weights(path: Path, states: States) -> None:
    """Write weights and buffers as safetensors.

    Raises:
        DataError: the file cannot be written.
    """
    # A copy of each: safetensors refuses tensors that share memory.
    flat = {
        f"{gate}.{name}": tensor.detach().cpu().contiguous().clone()
        for gate, state in states.items()
        for name, tensor in state.items()
    }
    with whole_file(path) as part:
        part.write_bytes(safetensors.torch.save(flat))


def load_weights(path: Path, network: Network) -> Network:
    """The same network, starting from the weights in a file.

    Raises:
        DataError: the file is missing or damaged, or holds the weights of another network.
    """
    flat = _tensors(path)
    expected = {
        f"{address}.{name}": tensor
        for address, gate in zip(network.row(), network.gates, strict=True)
        for name, tensor in _named_tensors(gate.module)
    }
    for name in sorted(expected.keys() ^ flat.keys()):
        has, lacks = ("task's network", path) if name in expected else (path, "task's network")
        raise DataError(f"{path} belongs to another network: the {has} has {name}, the {lacks} has not")
    for name, tensor in expected.items():
        if flat[name].shape != tensor.shape:
            got, wanted = tuple(flat[name].shape), tuple(tensor.shape)
            raise DataError(f"{path} belongs to another network: {name} is {got}, the task's is {wanted}")
    states = {
        address: {name: flat[f"{address}.{name}"] for name, _ in _named_tensors(gate.module)}
        for address, gate in zip(network.row(), network.gates, strict=True)
    }
    modules = network.module(states)
    gates = [replace(gate, module=module) for gate, module in zip(network.gates, modules, strict=True)]
    return replace(network, gates=gates)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, those that go by two names once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path} is not there; `akkordeon train --out {path.parent}` makes it")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from error


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────


def as_json(thing: Any) -> str:
    """One line of valid JSON; what JSON has no number for (NaN, infinity) becomes null."""
    return json.dumps(_finite(thing), ensure_ascii=False, allow_nan=False)


def _finite(thing: Any) -> Any:
    if isinstance(thing, Mapping):
        return {str(key): _finite(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_finite(value) for value in thing]
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing


def save_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write how the task is made again.

    Raises:
        DataError: the file cannot be written.
    """
    with whole_file(folder / TASK) as part:
        part.write_text(json.dumps(_finite(description), indent=2, ensure_ascii=False) + "\n")


def load_description(folder: Path) -> dict[str, Any]:
    """How the task of a kept run is made again; ``"task"`` is its name.

    Raises:
        DataError: the folder or the file is missing, or the file is damaged.
    """
    path = folder / TASK
    if not path.is_file():
        missing = f"has no {TASK}" if folder.is_dir() else "does not exist"
        raise DataError(
            f"the folder {folder} {missing}; `akkordeon train --out {folder}` makes what is needed"
        )
    try:
        description = json.loads(path.read_text())
        if not isinstance(description["task"], str):
            raise TypeError("its task is no name")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return dict(description)


# ── arrays ───────────────────────────────────────────────────────────────────────────────────────────


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
            array = np.lib.format.read_array(file, allow_pickle=False)
        tensor = torch.from_numpy(array)
    except (OSError, ValueError, TypeError, EOFError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read as an array of numbers: {why}") from error
    if not tensor.dim() or not len(tensor):
        raise DataError(f"{path} holds no rows: its shape is {tuple(tensor.shape)}")
    if tensor.is_floating_point() != like.is_floating_point():
        raise DataError(f"{path} holds {array.dtype}, but the task's inputs are {signature_of_rows(like)}")
    return tensor.to(like.dtype)


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
