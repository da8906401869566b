"""Opened modules that are over: for who comes after them, what they gave is there as what a block gave.

    ─▶ x ─┬─▶ norm ─▶ attention ─┊─▶ + ─┬─▶ norm ─▶ mlp ─▶ + ─┊─▶ y ─▶ the next module
          └──────────────────────┊──────┘└───────────────────┘ ┊
                                 ┊ here x and attention travel ┊ here y alone

They can stand aside in later gates, so that these compute none of their glue again, and its parts do not
travel. That is how a gate that is cut finely costs what it will cost in a larger one; it is not how gates are
trained: a module may keep something for later that no example shows, as a count, or a length that differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from akkordeon.pipeline.splitting.walk import CallSpan, Source, Sources, Walk, hides_tensors

__all__ = ["CallSpans"]


class CallSpans:
    """Those of a walk whose modules can stand aside when they are over.

    So can those that are called once, by opened modules, and of which nothing is used later but what they
    gave.

    Args:
        walk: through a module.
        needs: the sources of what each call needs, and of what the whole gives.
        stand_aside: whether any may.
    """

    def __init__(self, walk: Walk, needs: list[Sources], stand_aside: bool) -> None:
        self._made_of = walk.made_of
        names = [span.module for span in walk.spans]
        self._known = {
            span.number: span
            for span in walk.spans
            if stand_aside
            and span.first < span.end < len(walk.calls)
            and names.count(span.module) == 1
            and span.module not in walk.within_blocks
            and not hides_tensors(span.gave)
        }
        while leaking := [span.number for span in self if self._leaks(span, needs)]:
            for number in leaking:
                del self._known[number]

    def __iter__(self) -> Iterator[CallSpan]:
        """In the order of their ends."""
        return iter(self._known.values())

    def __len__(self) -> int:
        """How many."""
        return len(self._known)

    def get(self, number: int | str) -> CallSpan | None:
        """The span of that number."""
        return self._known.get(number) if isinstance(number, int) else None

    def _leaks(self, span: CallSpan, needs: list[Sources]) -> bool:
        later = frozenset[Source]().union(*needs[span.end :])
        return any(self._is_within(source, span) for source in self.seen_from(span.end, later))

    def _is_within(self, source: Source, span: CallSpan) -> bool:
        if source.of == span.number or isinstance(source.of, str):
            return False
        inner = self.get(source.of)
        if inner is None:
            return span.first <= source.of < span.end
        return span.first <= inner.first and inner.end <= span.end

    def seen_from(self, place: int, sources: Iterable[Source]) -> Sources:
        """The same, but that of spans that are not over at a place there is what they are made of."""
        found, todo, seen = set[Source](), list(sources), set[Source]()
        while todo:
            source = todo.pop()
            if source in seen:
                continue
            seen.add(source)
            span = self.get(source.of)
            if source in self._made_of and (span is None or span.end > place):
                todo.extend(self._made_of[source])
            else:
                found.add(source)
        return frozenset(found)

    def made_in(self, span: CallSpan) -> Sources:
        """The sources of what a span gave, as its glue has them at its end."""
        made_of = [sources for source, sources in self._made_of.items() if source.of == span.number]
        return self.seen_from(span.end - 1, frozenset[Source]().union(*made_of))
