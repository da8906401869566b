"""A module walked through: where it can be cut, and what travels over each cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import nn

from akkordeon.core.errors import RecipeError, explain
from akkordeon.core.payload import Payload, nbytes
from akkordeon.pipeline.module_copy import copied
from akkordeon.pipeline.splitting.form import Form, Parcel, Piece
from akkordeon.pipeline.splitting.part import Part
from akkordeon.pipeline.splitting.spans import CallSpans
from akkordeon.pipeline.splitting.walk import (
    INPUTS,
    Look,
    Source,
    Sources,
    blocks_of,
    hides_tensors,
    leaves_in,
    walked,
)

__all__ = ["Layout", "containers_in"]


def containers_in(module: nn.Module, opened: Iterable[str]) -> set[str]:
    """Names of what is opened, with the lists and dicts of modules in it that have no forward."""
    found = set(opened)
    for name, block in blocks_of(module, found).items():
        if type(block).forward is nn.Module.forward:  # it has none, as a list of modules
            found |= containers_in(module, found | {name})
    return found


class Layout:
    """A module, the blocks it is made of, and what their calls need.

    Args:
        whole: it stays as it is: a copy is walked through.
        opened: names of the modules whose forward is walked through.
        example: a batch.
        spread: whether gates may call one module, each a copy of it, where it has no weights.
        stand_aside: whether opened modules that are over stand aside in later gates, where that is the same
            on the example; what they keep beside what they give would be lost for other batches.
    """

    def __init__(
        self,
        whole: nn.Module,
        opened: Iterable[str],
        example: Payload,
        spread: bool = True,
        stand_aside: bool = False,
    ) -> None:
        if hides_tensors(example):
            raise RecipeError(
                f"an example is a tensor, or a tuple, list or dict of such, got {type(example).__name__}"
            )
        self.whole = whole
        self.spread = spread
        self.opened = containers_in(whole, opened)
        while True:
            twin = copied(whole).train()
            self.blocks = blocks_of(twin, self.opened)
            try:
                with torch.random.fork_rng(), torch.enable_grad():
                    self.walk = walked(twin, self.opened, example)
            except Exception as error:
                raise RecipeError(
                    f"{type(whole).__name__} cannot work on the example: {explain(error)}"
                ) from error
            self.calls = self.walk.calls
            passed_by = self._passed_by()
            if not passed_by:
                break
            self.opened = containers_in(whole, self.opened | passed_by)
        self._everywhere = {name for name in self.blocks if spread and _can_be_anywhere(name, whole, twin)}
        self._names = {id(parameter): name for name, parameter in twin.named_parameters()}
        self._sizes = {name: nbytes(parameter) for name, parameter in twin.named_parameters()}
        self.spans = CallSpans(self.walk, self._needs, stand_aside)

    def _passed_by(self) -> set[str]:
        """Blocks that are not called, while their parts may be, as in ``self.model.decoder(x)``."""
        called = {call.block for call in self.calls}
        return {
            name for name, block in self.blocks.items() if name not in called and next(block.children(), None)
        }

    # ── who needs what ───────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _needs(self) -> list[Sources]:
        """Of each call, with the weights in its block; of what the whole gives at the end."""
        needs = [call.needs | self._weights_of(call.block) for call in self.calls]
        return [*needs, self.walk.needs]

    def _weights_of(self, block: str) -> Sources:
        return frozenset(Source(self._names[id(p)]) for p in self.blocks[block].parameters())

    @cached_property
    def _needed_from(self) -> list[Sources]:
        """By each call or one after it."""
        backwards = accumulate(reversed(self._needs), frozenset.union, initial=frozenset[Source]())
        return list(backwards)[:0:-1]

    @cached_property
    def first_use(self) -> dict[str, int]:
        """The first call that needs a weight, by its name."""
        first: dict[str, int] = {}
        last = len(self.calls) - 1
        uses = [
            *((min(number, last), self.spans.seen_from(number, s)) for number, s in enumerate(self._needs)),
            *((span.end - 1, self.spans.made_in(span)) for span in self.spans),
        ]
        for number, sources in uses:
            for source in sources:
                if isinstance(source.of, str):
                    first[source.of] = min(number, first.get(source.of, number))
        asked = self.spans.seen_from(last, (source for source, _ in self.walk.asked))
        return first | {source.of: 0 for source in asked if isinstance(source.of, str)}

    def _is_before(self, source: Source, place: int) -> bool:
        span = self.spans.get(source.of)
        if span is not None:
            return span.end <= place
        number = source.of if isinstance(source.of, int) else self.first_use.get(source.of, 0)
        return number < place

    def crossing(self, place: int) -> Parcel:
        """What goes from the calls before a place to those from there on."""
        asked, touched = (self._looked_at(place, looks) for looks in (self.walk.asked, self.walk.touched))
        values = self._crossing(place, self._needed_from[place] | asked)
        shapes = {s for s in self._crossing(place, touched) - values if isinstance(s.of, int)}
        return Parcel(tuple(sorted(values, key=_order)), tuple(sorted(shapes, key=_order)))

    def _looked_at(self, place: int, looks: Iterable[Look]) -> Sources:
        """By glue that those who come after a place run, too."""
        over = {span.module for span in self.spans if span.end <= place}
        return frozenset(source for source, within in looks if over.isdisjoint(within))

    def _crossing(self, place: int, sources: Sources) -> Sources:
        """Of these what is before a place, as those see it who come after."""
        seen = self.spans.seen_from(place, sources)
        return frozenset(source for source in seen if self._is_before(source, place))

    # ── cuts ─────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _within(self) -> set[int]:
        """Places between two calls of one block, but for those that any gate may call."""
        last = {call.block: number for number, call in enumerate(self.calls)}
        return {
            place
            for number, call in enumerate(self.calls)
            if call.block not in self._everywhere
            for place in range(number + 1, last[call.block] + 1)
        }

    @cached_property
    def hidden_from(self) -> int:
        """The first call that gives tensors in something that nobody can look into."""
        return next(
            (number for number, call in enumerate(self.calls) if hides_tensors(call.gave)), len(self.calls)
        )

    def shared_over(self, place: int) -> list[str]:
        """The weights that calls on both sides of a place need."""
        return [source.of for source in self.crossing(place).values if isinstance(source.of, str)]

    def cut_cost(self, place: int, tie: bool) -> float | None:
        """Bytes that travel over a cut; None where there can be none."""
        if place in self._within or place > self.hidden_from or (not tie and self.shared_over(place)):
            return None
        return float(sum(self._bytes(source) for source in self.crossing(place).values))

    def _bytes(self, source: Source) -> int:
        if isinstance(source.of, str):
            return self._sizes[source.of]
        span = self.spans.get(source.of)
        if span is not None:
            gave = span.gave
        else:
            gave = self.walk.inputs if source.of == INPUTS else self.calls[source.of].gave
        return nbytes(leaves_in(gave)[source.place])

    def places_of(self, names: Sequence[str]) -> list[int]:
        """The numbers of the first calls of blocks.

        Raises:
            RecipeError: one is not called, or not after the one before it, or a cut before it cannot be.
        """
        order = [call.block for call in self.calls]
        for name in names:
            if name not in order:
                raise RecipeError(f"there can be no cut before {name!r}: the forward does not call it")
        places = [order.index(name) for name in names]
        for name, place in zip(names, places, strict=True):
            if place == 0:
                raise RecipeError(f"there can be no cut before {name!r}: it is the first to be called")
            if place in self._within:
                raise RecipeError(
                    f"there can be no cut before {name!r}: a module that is called before it is called again "
                    "after it"
                )
            if place > self.hidden_from:
                call = self.calls[self.hidden_from]
                raise RecipeError(
                    f"there can be no cut before {name!r}: {call.block!r} gives tensors in a "
                    f"{type(call.gave).__name__}, and only those in tuples, lists and dicts can be sent on"
                )
        if places != sorted(set(places)):
            raise RecipeError(f"cut_before has names in the order of their calls, got {list(names)}")
        return places

    # ── parts ────────────────────────────────────────────────────────────────────────────────────────

    def parts(self, places: Sequence[int]) -> list[Part]:
        """The modules of the gates of a row that is cut at some places."""
        starts, ends = [0, *places], [*places, len(self.calls)]
        forms = tuple(Form.of(call.gave) for call in self.calls)
        order = tuple(call.block for call in self.calls)
        spans = tuple(replace(span, gave=Form.of(span.gave)) for span in self.spans)
        return [
            self._part(
                Piece(
                    names=order,
                    first=start,
                    last=end - 1,
                    takes=self.crossing(start) if start else None,
                    gives=self.crossing(end) if end < len(order) else None,
                    inputs=Form.of(self.walk.inputs),
                    gave=forms,
                    spans=spans,
                )
            )
            for start, end in zip(starts, ends, strict=True)
        ]

    def _part(self, piece: Piece) -> Part:
        twin = copied(self.whole)
        here = range(piece.first, piece.last + 1)
        elsewhere = {name for number, name in enumerate(piece.names) if number not in here}
        own = [name for name in self.blocks if name not in elsewhere]
        weights = [name for name in self._sizes if self.first_use.get(name, 0) in here]
        return Part(twin, blocks_of(twin, self.opened), own, self._everywhere, weights, piece)


def _can_be_anywhere(name: str, before: nn.Module, after: nn.Module) -> bool:
    """Whether a block can be called in several gates: it has no weights, and its buffers stay as they are."""
    block, same = after.get_submodule(name), before.get_submodule(name)
    hooks = block._forward_hooks or block._forward_pre_hooks or block._backward_hooks
    if hooks or next(block.parameters(), None) is not None:
        return False
    now, was = dict(block.named_buffers()), dict(same.named_buffers())
    return now.keys() == was.keys() and all(torch.equal(now[name], was[name]) for name in now)


def _order(source: Source) -> tuple[bool, str, int, int]:
    """What is sent along goes in one order: inputs and results of calls, then weights."""
    if isinstance(source.of, str):
        return True, source.of, 0, 0
    return False, "", source.of, source.place
