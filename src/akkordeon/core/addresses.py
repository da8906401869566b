"""The addresses of sentinels and of the readers beside them: ``sentinel/tdp#2`` and ``reader/tdp#2``."""

from __future__ import annotations

__all__ = ["is_sentinel", "reader_of", "sentinel_address", "sentinel_of"]

SENTINEL, READER = "sentinel/", "reader/"


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
