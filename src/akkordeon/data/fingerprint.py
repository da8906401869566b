"""What data look like, so that a run that is taken up with others is told so."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler

from akkordeon.core.payload import Payload, tensors
from akkordeon.core.plain_state import PlainState
from akkordeon.data.batches import Batches

__all__ = ["difference", "fingerprint"]


def fingerprint(source: Any) -> dict[str, Any]:
    """How a source is cut into batches, and how many samples there are, where it says so.

    Of data in memory also what the first and the last sample are. Nothing is read of any other source: it may
    be a stream.
    """
    if isinstance(source, Batches):
        found = {
            name: getattr(source, name) for name in ("samples", "batch_size", "shuffle", "seed", "drop_last")
        }
        return {"kind": "Batches", **found, "inputs": _checksum(source.x), "labels": _checksum(source.y)}
    if isinstance(source, DataLoader):
        return {
            "kind": "a DataLoader",
            "samples": _length(source.dataset),
            "batch_size": source.batch_size,
            "shuffle": isinstance(source.sampler, RandomSampler),
            "drop_last": source.drop_last,
        }
    return {"kind": "a source of its own"}


def difference(kept: PlainState, here: PlainState) -> str | None:
    """The first thing of both in which two fingerprints differ, in words; None if they are equal."""
    for name, there in kept.items():
        mine = here.get(name, there)
        if there != mine:
            return (
                f"their {name} was {there!r} and is {mine!r}" if name in _SHOWN else f"they have other {name}"
            )
    return None


_SHOWN = ("kind", "samples", "batch_size", "shuffle", "seed", "drop_last")


def _length(data: Any) -> int | None:
    """How many samples, if anybody knows."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _checksum(some: Payload) -> int:
    """Of the first sample and the last."""
    checksum = 0
    for tensor in tensors(some):
        for number in (0, len(tensor) - 1):
            row = torch.tensor([number], device=tensor.device)
            plain = tensor.detach().index_select(0, row).to_dense().cpu()
            checksum = zlib.crc32(repr((plain.dtype, plain.shape, plain.tolist())).encode(), checksum)
    return checksum
