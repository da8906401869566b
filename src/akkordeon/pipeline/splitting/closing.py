"""Modules that were opened to find cuts, and that no cut lies in, are closed again.

Each gate computes again what is between blocks, so that of what lies in an open module more travels, and
gradients of it are summed up in another order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby

from akkordeon.core.payload import Payload
from akkordeon.pipeline.splitting.layout import Layout

__all__ = ["closed_again"]


def closed_again(layout: Layout, places: Sequence[int], example: Payload) -> tuple[Layout, Sequence[int]]:
    """The same cuts with as little open as can be: a layout, and the places in it.

    Args:
        layout: in which the cuts were found.
        places: the numbers of the calls that they are before.
        example: a batch.
    """
    whole = {name for name in layout.opened if name and _is_in_one_part(layout, name, places)}
    if not whole:
        return layout, places
    closed = Layout(layout.whole, layout.opened - whole, example, layout.spread)
    blocks = whole & closed.blocks.keys()
    groups, theirs = list(_groups(layout, blocks)), list(_groups(closed, blocks))
    if [name for name, _ in groups] != [name for name, _ in theirs]:
        return layout, places  # as where a layer in one of them is called elsewhere as well
    number_of = {first: number for (_, first), (_, number) in zip(groups, theirs, strict=True)}
    found = [number_of[place] for place in places]
    if any(closed.cut_cost(place, tie=True) is None for place in found):
        return layout, places  # as where what it gives cannot be sent on
    return closed, found


def _is_in_one_part(layout: Layout, module: str, places: Sequence[int]) -> bool:
    parts = {bisect_right(places, i) for i, c in enumerate(layout.calls) if c.block.startswith(f"{module}.")}
    return len(parts) == 1


def _groups(layout: Layout, closed: set[str]) -> Iterator[tuple[str, int]]:
    """The calls of a layout, those of a closed module in a row together: names, and the first of each."""

    def around(number: int) -> tuple[str, int]:
        name = layout.calls[number].block
        module = next((module for module in closed if f"{name}.".startswith(f"{module}.")), None)
        return (name, number) if module is None else (module, -1)

    for (name, _), numbers in groupby(range(len(layout.calls)), around):
        yield name, next(numbers)
