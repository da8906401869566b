"""Layouts worth a dry run: few enough that all are run, and each there for a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from akkordeon.experiments.planning.costs import ModelCosts
from akkordeon.experiments.planning.machines import Machines
from akkordeon.pipeline.splitting.balance import balanced

__all__ = ["RunLayout", "proposed"]

PAYS = 0.95
"""One gate more is proposed if the heaviest is then less than this share of the heaviest before."""


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """How a model is laid out on machines.

    Args:
        ends: the number of the block after the last of each gate.
        in_flight: batches that each trainer has under way.
        placement: the host of each gate.
    """

    ends: tuple[int, ...]
    in_flight: int
    placement: tuple[str, ...]

    @property
    def gates(self) -> int:
        """How many, in a row."""
        return len(self.ends)

    def __str__(self) -> str:
        """In a few words."""
        gates = f"{self.gates} gate" + "s" * (self.gates > 1)
        batches = f"{self.in_flight} batch" + "es" * (self.in_flight > 1)
        return f"{gates}, {batches} in flight"


def proposed(costs: ModelCosts, machines: Machines, may_merge: bool = True) -> list[RunLayout]:
    """The layouts to run dry.

    Args:
        costs: of the model.
        machines: where it is to run.
        may_merge: whether gates may have several blocks.
    """
    return list(_rows_on_one(costs, machines, may_merge))


def _rows_on_one(costs: ModelCosts, machines: Machines, may_merge: bool) -> Iterator[RunLayout]:
    """A row on the host that does most, with up to twice as many gates as it has cores."""
    host = machines.fastest
    for ends in _cuts(costs, 2 * host.cores, may_merge):
        for in_flight in _in_flight(len(ends)):
            yield RunLayout(ends=ends, in_flight=in_flight, placement=(host.name,) * len(ends))


def _cuts(costs: ModelCosts, most: int, may_merge: bool) -> Iterator[tuple[int, ...]]:
    """Where rows of gates end, as long as one more makes the heaviest lighter."""
    blocks = len(costs.blocks)
    if not may_merge:
        yield tuple(range(1, blocks + 1))
        return
    heaviest_s = float("inf")
    for count in range(1, min(most, blocks) + 1):
        ends = balanced(costs.block_s, count, lambda place: costs.blocks[place - 1].output_bytes)
        now_s = _heaviest_s(costs.block_s, ends)
        if now_s < PAYS * heaviest_s:
            heaviest_s = now_s
            yield tuple(ends)


def _heaviest_s(block_s: Sequence[float], ends: Sequence[int]) -> float:
    starts = [0, *ends[:-1]]
    return max(sum(block_s[start:end]) for start, end in zip(starts, ends, strict=True))


def _in_flight(gates: int) -> list[int]:
    """One, which is never stale, and so many that gates need not wait for each other."""
    return [1, 2] if gates == 1 else sorted({1, 2, gates, gates + 1, 2 * gates})
