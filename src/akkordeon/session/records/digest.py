"""Digests of what a run is made of and of what it does, by which a replay knows where it differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.errors import explain
from akkordeon.core.messages import Batch, CutId, Message
from akkordeon.core.payload import bytes_of
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network

__all__ = ["Digest", "data_fingerprint", "fingerprint", "key_of", "weights_digest"]


class Digest:
    """A short digest of anything that can be in an effect; equal bits, equal digest."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, value: Any) -> None:
        """Take a value in, with its type and everything inside."""
        update = self._hash.update
        if isinstance(value, Tensor):
            dense = value.to_dense() if value.layout is not torch.strided else value
            update(f"{value.dtype}{tuple(value.shape)}".encode())
            update(bytes_of(dense).numpy().data)
        elif value is None or isinstance(value, bool | int | float | str | Enum):
            update(f"{type(value).__name__}:{value!r};".encode())
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self.add(key)
                self.add(part)
        elif isinstance(value, BaseException):
            update(f"{explain(value)};".encode())
        elif isinstance(value, tuple | list):
            update(f"{type(value).__name__}[{len(value)}]".encode())
            for part in value:
                self.add(part)
        elif is_dataclass(value) and not isinstance(value, type):
            update(type(value).__name__.encode())
            for field in fields(value):
                self.add(getattr(value, field.name))
        else:
            update(type(value).__name__.encode())

    def __str__(self) -> str:
        return self._hash.hexdigest()


def key_of(message: Message) -> str:
    """What tells a message from others to the same actor: its type and its small fields."""
    parts = [type(message).__name__]
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, Batch | CutId):
            parts.append(f"{value[0]}:{value[1]}")
        elif value is None or isinstance(value, bool | int | str):
            parts.append(f"{field.name}={value}")
    return " ".join(parts)


def fingerprint(network: Network | Downpour) -> str:
    """A digest of a network's modules, weights and rules. What its optimizers are, nobody can see."""
    digest = Digest()
    for gate in network.gates:
        digest.add([str(gate.module), gate.module.state_dict(), repr(gate.staleness), gate.clip_norm])
    digest.add([network.max_staleness, network.max_in_flight])
    if isinstance(network, Network) and network.clip_whole_norm is not None:
        digest.add(network.clip_whole_norm)
    return str(digest)


def data_fingerprint(batches: Any) -> str | None:
    """A digest of a source of batches; None where looking would use it up."""
    digest = Digest()
    tensors = vars(batches) if is_dataclass(batches) and not isinstance(batches, type) else batches
    if not isinstance(tensors, Mapping | tuple | list | Tensor):
        return None
    digest.add(tensors)
    return str(digest)


def weights_digest(weights: Iterable[Tensor]) -> str:
    """A digest (SHA-256) of the bits of tensors, by which people compare runs."""
    digest = hashlib.sha256()
    for tensor in weights:
        digest.update(bytes_of(tensor).numpy().data)
    return digest.hexdigest()
