"""Where to cut a row of pieces, so that no part takes much longer than the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

__all__ = ["balanced"]


def balanced(
    costs: Sequence[float],
    parts: int,
    cut_cost: Callable[[int], float | None] = lambda place: 0.0,
    speeds: Sequence[float] = (),
) -> list[int]:
    """The ends of contiguous parts, none empty: the largest as small as can be, then the cheapest cuts.

    Args:
        costs: of each piece, in order.
        parts: how many, at most as many as pieces.
        cut_cost: of a cut before a piece; None where none may be.
        speeds: of each part, where they differ; its costs are divided by it.

    Returns:
        The number of the piece after each part; empty where there is no such cut.
    """
    total = len(costs)
    none = (float("inf"), 0.0, ())

    def load(start: int, end: int, left: int) -> float:
        return sum(costs[start:end]) / (speeds[parts - left] if speeds else 1.0)

    @cache
    def best(start: int, left: int) -> tuple[float, float, tuple[int, ...]]:
        if left == 1:
            return load(start, total, left), 0.0, (total,)
        options: list[tuple[float, float, tuple[int, ...]]] = [none]
        for end in range(start + 1, total - left + 2):
            price = cut_cost(end)
            if price is not None:
                largest, prices, ends = best(end, left - 1)
                options.append((max(load(start, end, left), largest), price + prices, (end, *ends)))
        return min(options)

    return list(best(0, parts)[2])
