"""A module's weights as the bytes of a safetensors file, and a network that starts from such bytes.

The tensors are those of ``module.state_dict()`` under its names, so that any model of the same form loads
them. What a state dict does not have, or safetensors cannot hold, goes into the file's metadata: buffers
that are not persistent, and extra state. So does a digest (SHA-256) of all else, without which a damaged
weight would only be another number.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from akkordeon.core.errors import DataError
from akkordeon.pipeline.network import Network

__all__ = ["from_safetensors", "to_safetensors"]

METADATA_BYTES_MAX = 90_000_000
"""safetensors reads no header of more than 100 MB."""


def to_safetensors(module: nn.Module) -> bytes:
    """All weights and buffers of a module, and its extra state, as a safetensors file.

    Raises:
        DataError: what belongs into the metadata is too large for it.
    """
    values = _values(module)
    # A copy of each: safetensors refuses tensors that share memory.
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in values.items() if _fits(value)
    }
    content = safetensors.torch.save(tensors, _metadata(values, module.state_dict().keys()))
    header, data = _split(content)
    header.setdefault("__metadata__", {})["sha256"] = _digest(header, data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def from_safetensors(content: bytes, network: Network, path: Path) -> Network:
    """The same network, starting from the weights in a file.

    Args:
        content: of the file.
        network: the recipe.
        path: of the file, for what there is to complain of.

    Raises:
        DataError: the file is damaged, or holds the weights of another network.
    """
    values = _checked(content, path)
    module = network.module()
    _refuse_others(values, module, path)
    _install(values, module, path)
    return network.starting_from(module)


# ── what there is to keep ────────────────────────────────────────────────────────────────────────────


def _values(module: nn.Module) -> dict[str, Any]:
    """What the module's state dict has, and all buffers beside; None for those that are not there yet."""
    values = dict(module.state_dict())
    for name, owner, leaf in _buffers(module):
        values.setdefault(name, owner._buffers[leaf])
    return values


def _buffers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every buffer's name in the module, owner, and name there."""
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for leaf in owner._buffers:
            yield f"{prefix}.{leaf}" if prefix else leaf, owner, leaf


def _fits(value: object) -> bool:
    """Whether safetensors can hold it."""
    return isinstance(value, Tensor) and value.layout is torch.strided and _known(value.dtype)


@cache
def _known(dtype: torch.dtype) -> bool:
    try:
        safetensors.torch.save({"": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, RuntimeError):
        return False
    return True


def _metadata(values: Mapping[str, Any], in_state_dict: Any) -> dict[str, str] | None:
    """Where what is no tensor of the state dict goes; what is no plain data is named, and left out."""
    rest = {name: value for name, value in values.items() if not (_fits(value) and name in in_state_dict)}
    left_out = [name for name, value in rest.items() if not _is_plain(value)]
    metadata = {}
    if left_out:
        metadata["left_out"] = json.dumps(left_out)
    kept = {name: value for name, value in rest.items() if name not in left_out}
    if kept:
        metadata["rest"] = base64.b64encode(zlib.compress(_pickled(kept), 1)).decode()
        if len(metadata["rest"]) > METADATA_BYTES_MAX:
            raise DataError(
                f"{', '.join(kept)} cannot be kept with the weights: {len(metadata['rest']) / 1e6:.0f} MB is "
                "too much for what is not in the state dict; make these buffers persistent"
            )
    return metadata or None


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _is_plain(value: object) -> bool:
    """Whether it can be read again without running code of whoever wrote it."""
    if value is None or isinstance(value, Tensor):
        return True
    try:
        torch.load(io.BytesIO(_pickled(value)), weights_only=True)
    except Exception:  # whatever its own pickling raises
        return False
    return True


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and all that follows it.

    Raises:
        ValueError: it has none.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if end > len(content) or not isinstance(header, dict):
        raise ValueError("its header is cut short")
    return header, content[end:]


def _digest(header: Mapping[str, Any], data: bytes) -> str:
    """Of all that the file says but the digest itself."""
    metadata = {name: value for name, value in header.get("__metadata__", {}).items() if name != "sha256"}
    said = json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode()
    digest = hashlib.sha256(said)
    digest.update(data)
    return digest.hexdigest()


def _checked(content: bytes, path: Path) -> dict[str, Any]:
    """What the file holds, by name.

    Raises:
        DataError: it is damaged, or no such file.
    """
    try:
        header, data = _split(content)
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or "sha256" not in metadata:
            raise DataError(f"{path} has no digest of its weights, so nobody knows whether they are right")
        if metadata["sha256"] != _digest(header, data):
            raise DataError(f"{path} is damaged: what it holds does not fit its digest")
        values = dict(safetensors.torch.load(content))
        if "left_out" in metadata:
            names = ", ".join(json.loads(metadata["left_out"]))
            raise DataError(f"{path} is not all of its network: {names} is no plain data and was left out")
        if "rest" in metadata:
            rest = zlib.decompress(base64.b64decode(metadata["rest"]))
            values |= torch.load(io.BytesIO(rest), weights_only=True)
    except (safetensors.SafetensorError, ValueError, RecursionError, zlib.error, pickle.PickleError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged or no safetensors file: {error}") from error
    return values


# ── into a module ────────────────────────────────────────────────────────────────────────────────────


def _refuse_others(values: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    """Refuse the weights of another network by the first name that differs."""
    expected = _values(module)
    for name in sorted(expected.keys() ^ values.keys()):
        has, lacks = ("task's network", path) if name in expected else (path, "task's network")
        raise DataError(f"{path} belongs to another network: the {has} has {name}, the {lacks} has not")
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in values and not is_lazy(parameter) and values[name].shape != parameter.shape:
            got, wanted = tuple(values[name].shape), tuple(parameter.shape)
            raise DataError(f"{path} belongs to another network: {name} is {got}, the task's is {wanted}")


def _install(values: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    """Buffers as they are, which may have come, gone or grown; all else as the module itself loads it."""
    for name, owner, leaf in _buffers(module):
        here, value = owner._buffers[leaf], values[name]
        if value is None or here is None or here.shape != value.shape or here.dtype != value.dtype:
            owner._buffers[leaf] = value
        else:
            here.copy_(value)
    try:
        module.load_state_dict({name: values[name] for name in module.state_dict()})
    except (RuntimeError, KeyError) as error:
        raise DataError(f"{path} belongs to another network: {' '.join(str(error).split())}") from error
