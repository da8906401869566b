"""Names of sentinels, and addresses: ``sentinel/tdp#2``, and ``reader/tdp#2`` of the reader beside it."""

from __future__ import annotations

import itertools
from collections.abc import Container

__all__ = [
    "free_name",
    "is_sentinel",
    "is_shard",
    "reader_of",
    "sentinel_address",
    "sentinel_of",
    "shard_address",
]

SENTINEL, READER, SHARD = "sentinel/", "reader/", "shard/"


def free_name(role: str, taken: Container[str], joint: str = "-") -> str:
    """A name for a sentinel that was given none: its role, or ``train-2`` and so on where that is taken."""
    names = itertools.chain([role], (f"{role}{joint}{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)


def sentinel_address(name: str, number: int) -> str:
    """The address of the sentinel that is the ``number``-th of its name."""
    return f"{SENTINEL}{name}#{number}"


def reader_of(sentinel: str) -> str:
    """The address of whoever reads for a sentinel."""
    return READER + sentinel.removeprefix(SENTINEL)


def sentinel_of(address: str) -> str:
    """The address of the sentinel that a reader reads for; any other address as it is."""
    return SENTINEL + address.removeprefix(READER) if address.startswith(READER) else address


def is_sentinel(address: str) -> bool:
    """Whether an address is that of a sentinel."""
    return address.startswith(SENTINEL)


def shard_address(index: int) -> str:
    """The address of the parameter shard of a position, counted from the head."""
    return f"{SHARD}{index}"


def is_shard(address: str) -> bool:
    """Whether an address is that of a parameter shard, or of a part of one."""
    return address.startswith(SHARD)
