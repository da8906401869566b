"""Which actors share a machine, and how many of them can work at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from akkordeon.core.addresses import sentinel_of
from akkordeon.core.errors import RecipeError

__all__ = ["Host", "place"]


@dataclass(frozen=True)
class Host:
    """A machine.

    Args:
        name: for links and faults.
        actors: addresses, with ``*`` as in file names.
        cores: actors that work at the same time; None for any number.
        zone: for links.
        bytes_per_s: what it can send to all others together, and be sent by them; None for any number.

    Raises:
        RecipeError: no cores, or no bandwidth.
    """

    name: str
    actors: Sequence[str]
    cores: int | None = None
    zone: str = ""
    bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse a machine that could do nothing."""
        if self.cores is not None and self.cores < 1:
            raise RecipeError(f"the host {self.name!r} needs at least one core, got {self.cores}")
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise RecipeError(f"the bandwidth of the host {self.name!r} is above 0, got {self.bytes_per_s}")


def place(hosts: Sequence[Host], address: str) -> Host:
    """The host of an actor: the first that names it, or one of its own, which a reader shares."""
    for host in hosts:
        if any(fnmatchcase(address, pattern) for pattern in host.actors):
            return host
    own = sentinel_of(address)
    return Host(own, (own,), zone=own)
