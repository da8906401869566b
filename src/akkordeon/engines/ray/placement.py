"""Which actors share a host. Pure functions of addresses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

from akkordeon.core.addresses import is_sentinel, sentinel_of
from akkordeon.core.errors import RecipeError

__all__ = [
    "Placement",
    "check_row",
    "host_of",
    "is_replica",
    "is_visitor",
    "require_placement",
    "sum_of_resources",
]

Placement = Literal["spread", "pack"] | Sequence[Sequence[int]]
"""``"spread"``: a host for each gate; ``"pack"``: one for all; ``[[0, 1], [2]]``: gates 0 and 1 share one."""


def require_placement(placement: Any) -> None:
    """Refuse what is no placement of any network."""
    if isinstance(placement, str):
        is_one = placement in ("spread", "pack")
    else:
        is_one = isinstance(placement, Collection) and all(map(_is_group, placement))
    if not is_one:
        raise RecipeError(f"a placement is 'spread', 'pack' or lists of gates, got {placement!r}")


def _is_group(group: Any) -> bool:
    return isinstance(group, Collection) and all(isinstance(gate, Integral) for gate in group)


def check_row(row: Iterable[str], placement: Placement) -> None:
    """Refuse a placement that is not one of these gates; of other actors it says nothing.

    Raises:
        RecipeError: it leaves a gate out, names one twice, or one that there is not.
    """
    gates = [address for address in row if address.startswith("gate/")]
    if not gates or isinstance(placement, str):
        return
    named = [f"gate/{gate}" for group in placement for gate in group]
    for address in gates:
        if named.count(address) != 1:
            raise RecipeError(f"a placement names every gate once; {address} is not so in {placement!r}")
    for address in named:
        if address not in gates:
            raise RecipeError(f"the network has no {address}, which is in the placement {placement!r}")


def host_of(address: str, placement: Placement) -> str:
    """The name of the host that an actor belongs to.

    Gates go by the placement. A replica is a host of its own with all its gates: they talk to each other
    more than to anybody else. Whoever is neither gets a host of its own, and so does a gate that came later
    than the placement.

    Raises:
        RecipeError: the placement names this gate twice, or is none at all.
    """
    kind, _, rest = address.partition("/")
    if kind == "replica":
        return f"replica/{rest.partition('/')[0]}"
    if kind != "gate":
        return address
    if placement == "spread":
        return address
    if placement == "pack":
        return "gates"
    require_placement(placement)
    groups = [tuple(group) for group in placement if int(rest) in group]
    if not groups:
        return address
    if len(groups) != 1 or groups[0].count(int(rest)) != 1:
        raise RecipeError(f"a placement names every gate once; {address} is not so in {placement!r}")
    return "gates/" + "+".join(map(str, groups[0]))


def is_visitor(address: str) -> bool:
    """Whether an actor comes and goes with the process that attached it."""
    return is_sentinel(sentinel_of(address))


def is_replica(host: str) -> bool:
    """Whether a host has a whole replica."""
    return host.startswith("replica/")


def sum_of_resources(resources: Iterable[Mapping[str, float] | None]) -> dict[str, float]:
    """What a host needs for all its actors together."""
    total: dict[str, float] = {}
    for needed in resources:
        for name, amount in (needed or {}).items():
            total[name] = total.get(name, 0) + amount
    return total
