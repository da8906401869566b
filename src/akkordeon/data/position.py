"""Where somebody is in a source: what was read and trained, and what is to be read next.

epoch 0  ■ ■ ■ ■ ■ ■        ■ done
epoch 1  ■ ■ □ ■ □ · ·      □ under way, or refused nowhere: to be read again     · not read yet
▲ place        done beyond it: (1, 3)
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset

from akkordeon.core.plain_state import Applied, PlainState
from akkordeon.data.batches import Batches
from akkordeon.data.loaders import read_on

__all__ = ["Place", "Places", "SourceMarks", "SourcePosition", "fast_forwarded", "has_state"]

RECENT_MAX = 4096
"""Batches of which it is known where they stood."""


class Place(NamedTuple):
    """Of a batch: the reading of the source, and its number there, both counted from 0."""

    epoch: int
    number: int


BEGINNING = Place(0, 0)

MARKS_KEPT = 8
"""States of a source kept at least: weights that are being kept may be some batches behind."""


@dataclass(frozen=True)
class SourcePosition:
    """All before ``place`` is done, and beyond it those of ``done``."""

    place: Place = BEGINNING
    done: frozenset[Place] = frozenset()

    def is_done(self, place: Place) -> bool:
        """Whether a batch is not to be read again."""
        return place < self.place or place in self.done

    def as_plain(self) -> dict[str, Any]:
        """It as plain data."""
        return {"place": list(self.place), "done": [list(place) for place in sorted(self.done)]}

    @classmethod
    def from_plain(cls, plain: PlainState) -> SourcePosition:
        """Make it again."""
        return cls(Place(*plain["place"]), frozenset(Place(*place) for place in plain["done"]))


class Places:
    """Knows the place of every batch sent, as they are read one after the other.

    Args:
        start: where reading begins.
        number: of the first batch.
        source: a state of the source before that.
        known: of the batches that will be read, those that another has trained, if any.
    """

    def __init__(
        self,
        start: SourcePosition = SourcePosition(),
        number: int = 0,
        source: PlainState | None = None,
        known: Applied | None = None,
    ) -> None:
        self.known = known or Applied()
        self._marks = SourceMarks(source)
        self._start = start
        self._first = number
        self._next = start.place
        self._recent: OrderedDict[int, tuple[Place, int]] = OrderedDict()
        self._skip_done()

    @classmethod
    def from_plain(cls, plain: PlainState) -> Places:
        """Go on from what :meth:`as_plain` gave."""
        position, known = SourcePosition.from_plain(plain["position"]), Applied.from_plain(plain.get("known"))
        return cls(position, plain["number"], plain["source"], known)

    def as_plain(self, not_done: Sequence[int], until: int) -> dict[str, Any]:
        """Where to go on, as plain data, if some batches are to be read again.

        Args:
            not_done: their numbers.
            until: the number of the next batch.
        """
        position = self.position(not_done)
        again = self.in_order(not_done)
        return {
            "number": until,
            "position": position.as_plain(),
            "source": self._marks.before(position.place),
            "again": again,
            "known": self.known_after(again, until),
        }

    def known_after(self, again: Sequence[int], until: int) -> dict[str, Any] | None:
        """What is known of batches that will be read, as plain data for one that reads some again first.

        Args:
            again: their numbers, in that order.
            until: the number of the next batch.
        """
        return self.known.renumbered(again, until).as_plain() if self.known.next > until else None

    @property
    def next(self) -> Place:
        """Of the next batch that will be read."""
        return self._next

    def mark(self, source: PlainState, under_way: Iterable[int]) -> None:
        """The source had this state before the next batch; batches of these numbers may be read again."""
        self._marks.add(self._next, source, self.position(under_way).place)

    def add(self, number: int, samples: int) -> None:
        """The next batch read was sent under this number."""
        place = self._next
        self._recent[number] = place, samples
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)
        self._next = Place(place.epoch, place.number + 1)
        if self._start.done:
            self._skip_done()

    def renumber(self, number: int, again: int) -> None:
        """A batch was sent again under another number."""
        self.known = self.known.moved(again, 1)
        found = self._recent.pop(number, None)
        if found is not None:
            self._recent[again] = found

    def end_epoch(self) -> None:
        """The source was read through."""
        self._next = Place(self._next.epoch + 1, 0)
        self._skip_done()

    def _skip_done(self) -> None:
        while self._next in self._start.done:
            self._next = Place(self._next.epoch, self._next.number + 1)

    def not_in(self, applied: Applied, until: int, refused: Container[int]) -> list[int]:
        """The numbers of batches sent that are neither applied nor refused, below ``until``.

        A batch sent so long ago that nobody knows its place counts as done.
        """
        numbers = [number for number in sorted(applied.missing) if number >= self._first]
        numbers += range(max(applied.next, self._first), until)
        return [number for number in numbers if number not in refused and number in self._recent]

    def in_order(self, numbers: Iterable[int]) -> list[int]:
        """The numbers of batches in the order in which they would be read again."""
        return sorted((n for n in numbers if n in self._recent), key=lambda n: self._recent[n][0])

    def samples_of(self, numbers: Iterable[int]) -> int:
        """How many samples are in some batches."""
        return sum(self._recent[number][1] for number in numbers if number in self._recent)

    def position(self, not_done: Iterable[int]) -> SourcePosition:
        """Where to go on, if the batches of these numbers are to be read again."""
        again = {self._recent[number][0] for number in not_done if number in self._recent}
        earliest = min([*again, self._next])
        sent = {place for place, _ in self._recent.values()} | self._start.done
        done = frozenset(place for place in sent - again if earliest < place)
        return SourcePosition(earliest, done)


class SourceMarks:
    """States of a source and where each was taken: what a position needs is the latest before it.

    Args:
        start: what :meth:`before` gave, where reading goes on from there.
    """

    def __init__(self, start: PlainState | None = None) -> None:
        self._marks: deque[tuple[Place, PlainState]] = deque()
        if start is not None:
            self._marks.append((Place(*start["place"]), start["state"]))

    def add(self, place: Place, state: PlainState | None, earliest: Place) -> None:
        """The source had this state before the batch at ``place``; those under way begin at ``earliest``."""
        if state is not None:
            self._marks.append((place, state))
            while len(self._marks) > MARKS_KEPT and self._marks[1][0] <= earliest:
                self._marks.popleft()

    def before(self, place: Place) -> dict[str, Any] | None:
        """The latest state taken at or before a place, and where that was."""
        found = [mark for mark in self._marks if mark[0] <= place]
        return {"place": list(found[-1][0]), "state": found[-1][1]} if found else None


def has_state(source: object) -> bool:
    """Whether a source can say where it is, and go on from there, as torchdata's StatefulDataLoader."""
    return callable(getattr(source, "state_dict", None)) and callable(
        getattr(source, "load_state_dict", None)
    )


def fast_forwarded(source: Any, epochs: int) -> Any:
    """A source that is not :class:`Batches`, after so many epochs that are not read again.

    Of a ``DataLoader`` the generator is moved on, of lists nothing; all else is read through.
    """
    if isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset):
        return read_on(source, epochs)
    if epochs and not isinstance(source, Batches | list | tuple):
        with unmoved_generator():
            for _ in range(epochs):
                deque(source, maxlen=0)
    return source


@contextmanager
def unmoved_generator() -> Iterator[None]:
    """Have the generator of the process afterwards where it was before."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
