"""What data look like, so that a run that is taken up with others is told so."""

from __future__ import annotations

import zlib
from typing import Any

from torch.utils.data import DataLoader

from akkordeon.core.payload import Payload, copy_of, tensors
from akkordeon.core.plain_state import PlainState
from akkordeon.data.batches import Batches

__all__ = ["difference", "fingerprint"]


def fingerprint(source: Any) -> dict[str, Any]:
    """How a source is cut into batches; of data in memory also what the first and the last sample are.

    Nothing is read of any other source: it may be a stream.
    """
    if isinstance(source, Batches):
        found = {
            name: getattr(source, name) for name in ("samples", "batch_size", "shuffle", "seed", "drop_last")
        }
        return {"kind": "Batches", **found, "inputs": _checksum(source.x), "labels": _checksum(source.y)}
    if isinstance(source, DataLoader):
        return {"kind": "a DataLoader", "batch_size": source.batch_size, "drop_last": source.drop_last}
    return {"kind": "a source of its own"}


def difference(kept: PlainState, here: PlainState) -> str | None:
    """The first thing in which two fingerprints differ, in words; None if they are equal."""
    for name in {**kept, **here}:
        there, mine = kept.get(name), here.get(name)
        if there != mine:
            return (
                f"their {name} was {there!r} and is {mine!r}" if name in _SHOWN else f"they have other {name}"
            )
    return None


_SHOWN = ("kind", "samples", "batch_size", "shuffle", "seed", "drop_last")


def _checksum(some: Payload) -> int:
    """Of the first sample and the last."""
    checksum = 0
    for tensor in tensors(some):
        for sample in (tensor[:1], tensor[-1:]):
            plain = copy_of(sample).contiguous().cpu()
            checksum = zlib.crc32(repr((plain.dtype, plain.shape, plain.tolist())).encode(), checksum)
    return checksum
