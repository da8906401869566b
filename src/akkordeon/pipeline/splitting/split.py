"""From any module to the modules of a row of gates, which together compute what it does, to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from akkordeon.core.errors import RecipeError, SharedParameterError
from akkordeon.core.payload import Payload
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.splitting.balance import balanced
from akkordeon.pipeline.splitting.closing import closed_again
from akkordeon.pipeline.splitting.cost import BlockCosts
from akkordeon.pipeline.splitting.layout import Layout
from akkordeon.pipeline.splitting.part import Part
from akkordeon.pipeline.splitting.verify import verify

__all__ = ["split", "split_finely"]

UNEVEN = 1.15
"""Blocks are opened until no gate takes more than this times its share of the whole."""


def split(
    whole: nn.Module,
    gates: int | None,
    example: Payload,
    optimizer: OptimizerFactory | None = None,
    cut_before: Sequence[str] = (),
    tie: bool = False,
    stand_aside: bool = False,
) -> list[Part]:
    """Split a module into parts: into so many that take about equally long, or at modules that are named.

    Args:
        whole: it stays as it is.
        gates: how many parts; not asked where ``cut_before`` names them.
        example: a batch of inputs.
        optimizer: its updates count as time.
        cut_before: the names of the modules that parts begin with, all but the first.
        tie: whether parts may use one weight; the first of them has it and sends it along.
        stand_aside: see :class:`Layout`; for cuts that are named.

    Raises:
        RecipeError: there are no such cuts, or the parts would give something else than the whole does.
        SharedParameterError: parts would use one weight, and ``tie`` does not allow it.
    """
    if cut_before:
        layout = _walked_to(whole, cut_before, example, stand_aside)
        places = layout.places_of(cut_before)
        if not stand_aside:
            with suppress(RecipeError):
                return _parts(*closed_again(layout, places, example), example, tie)
        return _parts(layout, places, example, tie)
    assert gates is not None, "checked by the caller"
    return _split_evenly(whole, gates, example, BlockCosts(optimizer), tie)


def split_finely(
    whole: nn.Module,
    most: int,
    example: Payload,
    optimizer: OptimizerFactory | None = None,
    tie: bool = False,
) -> list[Part]:
    """Split a module into as many parts as it can be that take about equally long, at most so many.

    Raises:
        RecipeError: it cannot work on the example.
    """
    known = BlockCosts(optimizer)
    for count in range(most, 1, -1):
        with suppress(RecipeError):
            return _split_evenly(whole, count, example, known, tie)
    return _split_evenly(whole, 1, example, known, tie)


def _split_evenly(whole: nn.Module, gates: int, example: Payload, known: BlockCosts, tie: bool) -> list[Part]:
    refused = list[RecipeError]()
    for opened, spread, is_plan in _starts(whole):
        try:
            layout = Layout(whole, opened, example, spread)
            ways = _even(layout, gates, example, known, tie, set(layout.blocks) if is_plan else set())
        except RecipeError as error:
            if is_plan:  # it has fewer parts than there are to be gates
                continue
            raise (refused or [error])[0]  # noqa: B904 - the first one says why
        for way in reversed(ways):
            layout = Layout(whole, way.opened, example, spread)
            try:
                return _parts(*closed_again(layout, way.places, example), example, tie)
            except RecipeError as error:  # a block that cannot be cut into may still stay whole
                refused.append(error)
    raise refused[0]


def _parts(layout: Layout, places: Sequence[int], example: Payload, tie: bool) -> list[Part]:
    if not tie:
        _refuse_shared(layout, places)
    parts = layout.parts(places)
    verify(layout.whole, parts, example)
    return parts


@dataclass(frozen=True)
class _Way:
    """A way to cut: the modules that are opened, and the places."""

    opened: set[str]
    places: list[int]


def _walked_to(whole: nn.Module, names: Sequence[str], example: Payload, stand_aside: bool) -> Layout:
    """A layout in which these are blocks."""
    modules = dict(whole.named_modules())
    for name in names:
        if name not in modules or not name:
            some = ", ".join(list(modules)[1:9])
            raise RecipeError(f"cut_before has no module {name!r}; there are {some}, …")
    layout = Layout(whole, _above(names), example, stand_aside=stand_aside)
    if layout.walk.draws:
        raise RecipeError(_draws(whole))
    return layout


def _above(names: Iterable[str]) -> set[str]:
    """The names of all modules that have one of these in them."""
    above = [name.split(".")[:-1] for name in names]
    return {".".join(parts[:depth]) for parts in above for depth in range(len(parts) + 1)}


def _draws(whole: nn.Module) -> str:
    return (
        f"between the blocks of {type(whole).__name__} random numbers are drawn, and each gate would "
        "draw them again; make a module of that, as nn.Dropout instead of F.dropout"
    )


# ── even parts ───────────────────────────────────────────────────────────────────────────────────────


def _starts(whole: nn.Module) -> list[tuple[set[str], bool, bool]]:
    """What to open at first, whether gates may call one module, and whether nothing else is opened.

    That is so where a module says by its ``_pp_plan`` what pipelines are made of, as those of Hugging Face's
    transformers do: by the names of its parts, of which one may be a list of layers.
    """
    plan = {
        f"{name}.{part}".removeprefix(".")
        for name, module in whole.named_modules()
        for part in getattr(module, "_pp_plan", None) or ()
    }
    anyhow = [({""}, True, False), ({""}, False, False)]
    return [(_above(plan), True, True), *anyhow] if plan else anyhow


def _even(
    layout: Layout, gates: int, example: Payload, known: BlockCosts, tie: bool, closed: set[str]
) -> list[_Way]:
    """Open blocks, the most costly first, until parts are about even; all ways to cut so far, best last.

    Args:
        layout: to begin with.
        gates: how many parts.
        example: a batch.
        known: what blocks cost.
        tie: whether parts may use one weight.
        closed: names of blocks that are not opened; those that have been tried are added.
    """
    ways = list[_Way]()
    if layout.walk.draws:
        raise RecipeError(_draws(layout.whole))
    if gates == 1:
        return [_Way(layout.opened, [])]
    while True:
        costs = known.costs_s(layout.calls, layout.blocks)
        ends = _ends(layout, costs, gates, tie)
        heaviest = _heaviest(costs, ends)
        if ends:
            ways.append(_Way(layout.opened, ends[:-1]))
            if sum(costs[i] for i in heaviest) <= UNEVEN * sum(costs) / gates:
                return ways
        if not ways and not tie and (shared := _ends(layout, costs, gates, tie=True)):
            raise _shared_error(layout, shared[0])
        order = sorted(range(len(costs)), key=lambda i: (i not in heaviest, -costs[i]))
        finer = _opened(layout, order if len(heaviest) > 1 or not ends else heaviest, closed, example)
        if finer is None:
            if not ways:
                raise RecipeError(
                    f"{type(layout.whole).__name__} cannot be cut into {gates} gates: its forward calls "
                    f"{len(costs)} blocks that can be told apart, and none of them can be opened"
                )
            return ways
        layout = finer


def _ends(layout: Layout, costs: Sequence[float], gates: int, tie: bool) -> list[int]:
    prices = {place: layout.cut_cost(place, tie) for place in range(1, len(costs))}
    return balanced(costs, gates, prices.__getitem__) if gates <= len(costs) else []


def _heaviest(costs: Sequence[float], ends: Sequence[int]) -> range:
    """The calls of the part that takes longest; all where there are no parts yet."""
    starts = [0, *ends[:-1]]
    parts = [range(start, end) for start, end in zip(starts, ends, strict=False)]
    return max(parts, key=lambda part: sum(costs[i] for i in part), default=range(len(costs)))


def _opened(layout: Layout, numbers: Sequence[int], closed: set[str], example: Payload) -> Layout | None:
    """A finer layout: with the first of these blocks opened that can be."""
    for number in numbers:
        name = layout.calls[number].block
        if name in closed:
            continue
        closed.add(name)
        if not _may_be_opened(layout.blocks[name]):
            continue
        with suppress(RecipeError):
            finer = Layout(layout.whole, layout.opened | {name}, example, layout.spread)
            shows = len(finer.calls) > len(layout.calls) or finer.hidden_from > layout.hidden_from
            if shows and not finer.walk.draws:
                return finer
    return None


def _may_be_opened(block: nn.Module) -> bool:
    """Whether there is anything in it to call; PyTorch's own layers look into their parts themselves."""
    own = type(block).__module__.startswith("torch.nn.") and not isinstance(block, nn.Sequential)
    return not own and next(block.children(), None) is not None


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────


def _refuse_shared(layout: Layout, places: Sequence[int]) -> None:
    for place in places:
        if layout.shared_over(place):
            raise _shared_error(layout, place)


def _shared_error(layout: Layout, place: int) -> SharedParameterError:
    name, block = layout.shared_over(place)[0], layout.calls[place].block
    return SharedParameterError(
        f"the parameter {name!r} is used before and after a cut at {block!r}; tie=True lets the first gate "
        "that uses it have it, and send it along with every batch"
    )
