"""Predictions that wait for their labels: by key, or until it is time for the label."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Item
from akkordeon.core.payload import Payload
from akkordeon.core.streams.messages import Key, Labelled
from akkordeon.core.streams.reports import LabelCount

__all__ = ["Example", "Unlabelled", "delay_of"]


@dataclass(slots=True, eq=False)
class Example:
    """What is known of an example, or of a small batch, on its way through prediction and training.

    Attributes:
        number: its place in the stream.
        x: inputs.
        key: by which its label will be known, if it comes by itself.
        y: labels.
        is_labelled: whether these have come.
        is_predicted: whether that was tried.
        outputs: what was predicted; None before that, once that was scored, and where the gates refused it.
        due: the time of its label, in examples of the stream, where that is known beforehand.
        records: numbers of the records that it came in.
    """

    number: int
    x: Payload
    key: Key | None = None
    y: Any = None
    is_labelled: bool = False
    is_predicted: bool = False
    outputs: Payload | None = None
    due: int | None = None
    records: list[int] = field(default_factory=list)

    def as_plain(self) -> dict[str, Any]:
        """It as plain data."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"records": [*self.records]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Example:
        """Make it again."""
        return cls(**plain)


def delay_of(delay: Any, item: Item | Labelled) -> int | None:
    """After how many examples the label of one is used; None where it comes by itself.

    Args:
        delay: that number, or a function of inputs and labels that gives it.
        item: the example.

    Raises:
        RecipeError: the function gave something else.
    """
    found = delay(item.x, item.y) if callable(delay) else delay
    if found is not None and not (isinstance(found, int) and found >= 0):
        raise RecipeError(f"delay gives a whole number of examples of at least 0, or None; got {found!r}")
    return found


class Unlabelled:
    """Examples whose labels are still to come. At most so many: of more the oldest is dropped.

    Args:
        most: examples that wait, and twice as many keys that are known to have come already.

    Attributes:
        count: what became of labels.
    """

    def __init__(self, most: int) -> None:
        self.count = LabelCount()
        self._most = most
        self._waiting: dict[int, Example] = {}  # by number, the oldest first
        self._by_key: dict[Key, Example] = {}
        self._due: list[tuple[int, int]] = []  # a heap of times and numbers; some are not waiting any more
        self._keys: OrderedDict[Key, bool] = OrderedDict()  # that came, and whether they are done with

    def __len__(self) -> int:
        return len(self._waiting)

    def is_new(self, key: Key) -> bool:
        """Whether a question came for the first time, as far as is known; if not, it is counted."""
        if key in self._keys or key in self._by_key:
            self.count.duplicates += 1
            return False
        return True

    def is_done(self, key: Key) -> bool:
        """Whether what came under a key is done with, as far as is known."""
        return self._keys.get(key, False)

    def came(self, key: Key) -> None:
        """Something has come under a new key."""
        self._note(key, False)

    def done(self, key: Key) -> None:
        """What came under a key is done with."""
        self._note(key, True)

    def _note(self, key: Key, done: bool) -> None:
        self._keys[key] = done
        if len(self._keys) > 2 * self._most:
            self._keys.popitem(last=False)

    def add(self, example: Example) -> Example | None:
        """Have an example wait; the one that is dropped for it, if there are too many."""
        self._waiting[example.number] = example
        if example.key is not None:
            self._by_key[example.key] = example
            self.came(example.key)
        if example.due is not None:
            heapq.heappush(self._due, (example.due, example.number))
        return self._drop_oldest() if len(self._waiting) > self._most else None

    def _drop_oldest(self) -> Example:
        example = self._remove(next(iter(self._waiting)))
        self.count.dropped += 1
        if len(self._due) > 2 * self._most:
            self._due = [due for due in self._due if due[1] in self._waiting]
            heapq.heapify(self._due)
        return example

    def drop_all(self) -> list[Example]:
        """No label will come any more."""
        dropped = list(self._waiting.values())
        self.count.dropped += len(dropped)
        self._waiting, self._by_key, self._due = {}, {}, []
        return dropped

    def answer(self, key: Key, y: Any) -> Example | None:
        """The example that has this label; None, and counted, if there is none."""
        example = self._by_key.get(key)
        if example is None:
            self.count.unmatched += 1
            return None
        example.y = y
        return self._labelled(example.number)

    def due(self, now: int | None) -> Iterator[Example]:
        """Those whose label is there by now, by time and then by number; with None all that ever have one."""
        while self._due and (now is None or self._due[0][0] <= now):
            _, number = heapq.heappop(self._due)
            if number in self._waiting:
                yield self._labelled(number)

    def _labelled(self, number: int) -> Example:
        example = self._remove(number)
        example.is_labelled = True
        return example

    def _remove(self, number: int) -> Example:
        example = self._waiting.pop(number)
        if example.key is not None:
            del self._by_key[example.key]
        return example

    def counted(self) -> LabelCount:
        """What became of labels, up to now."""
        count = self.count
        return LabelCount(len(self), count.dropped, count.unmatched, count.duplicates)

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        count = self.count
        return {
            "waiting": [example.as_plain() for example in self._waiting.values()],
            "keys": [[key, done] for key, done in self._keys.items()],
            "count": [count.dropped, count.unmatched, count.duplicates],
        }

    def go_on_from(self, state: Mapping[str, Any]) -> list[Example]:
        """Take up what another one was; those that were not predicted yet are given back, to be so."""
        dropped, unmatched, duplicates = state["count"]
        examples = [Example.from_plain(plain) for plain in state["waiting"]]
        for example in examples:
            self.add(example)
        self._keys.update((key, done) for key, done in state["keys"])
        self.count = LabelCount(0, dropped, unmatched, duplicates)
        return [example for example in examples if not example.is_predicted]
