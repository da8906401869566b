"""The recipe of a row that gates come into, or leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.splitting.part import Part

__all__ = ["free_address", "with_gates"]


def with_gates(network: Network, gates: Mapping[str, Gate]) -> Network:
    """The same network with other gates; those that stay keep their addresses.

    It is a row by hand then: its module is a Sequential of the gates, also where they were cut from one.

    Args:
        network: it stays as it is.
        gates: by address, head first.

    Raises:
        RecipeError: they are parts of one module's forward, or no network can be made of them.
        SharedParameterError: a parameter belongs to two gates.
    """
    if any(isinstance(gate.module, Part) for gate in network.gates):
        raise RecipeError(
            "the gates of this network run parts of one module's forward, of which none can be left out or "
            "put between; gates come and go in rows that are written by hand, or cut from an nn.Sequential"
        )
    return replace(network, gates=list(gates.values()), addresses=tuple(gates), whole=None)


def free_address(taken: set[str]) -> str:
    """The address of a new gate: the first number above all that there were."""
    numbers = [int(address.removeprefix("gate/")) for address in taken]
    return f"gate/{max(numbers, default=-1) + 1}"
