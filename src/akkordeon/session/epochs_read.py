"""How often the data of sentinels was read, so that those that come later go on where others have ended."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch.utils.data import DataLoader

from akkordeon.data.batches import Batches
from akkordeon.data.split import skip_epochs
from akkordeon.sentinels.recipes import Sentinel, Training

__all__ = ["EpochsRead"]

AnySentinel = TypeVar("AnySentinel", bound=Sentinel)


class EpochsRead:
    """The epochs read of each source, by trainers that have ended. Of ``Batches`` and loaders alone."""

    def __init__(self) -> None:
        self._came_of: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()  # and from which epoch
        self._read: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def going_on(self, sentinel: AnySentinel, seed: int) -> AnySentinel:
        """The sentinel, to go on with its data where those that trained on it before have ended."""
        source = sentinel.batches
        if not isinstance(sentinel, Training) or not isinstance(source, Batches | DataLoader):
            return sentinel
        with self._lock:
            read = self._read.get(source, 0)
        if not read:
            return sentinel
        following = skip_epochs(source, read, seed)
        self._note(following, source, read)
        return replace(sentinel, batches=following)

    def taken_up(self, source: Any, before: int, seed: int) -> Any:
        """A source, to be read on where so many epochs had been read before a trainer that is taken up."""
        if not isinstance(source, Batches | DataLoader):
            return source
        origin, began = self._came_of.get(source, (source, 0))
        following = skip_epochs(source, max(0, before - began), seed)
        self._note(following, origin, before)
        return following

    def before(self, source: Any) -> int:
        """How many epochs of its data were read before a source began."""
        known = isinstance(source, Batches | DataLoader)
        return self._came_of.get(source, (source, 0))[1] if known else 0

    def derive(self, parts: Iterable[Any], source: Any) -> None:
        """Have what is read of the parts count as read of the data they were made of."""
        if isinstance(source, Batches | DataLoader):
            origin, began = self._came_of.get(source, (source, 0))
            for part in parts:
                self._note(part, origin, began)

    def _note(self, source: Any, origin: Any, began: int) -> None:
        if source is not origin:
            with self._lock:
                self._came_of[source] = origin, began

    def add(self, source: Any, epochs: int) -> None:
        """A trainer has ended, after so many epochs of its source."""
        if isinstance(source, Batches | DataLoader):
            with self._lock:
                origin, began = self._came_of.get(source, (source, 0))
                self._read[origin] = max(self._read.get(origin, 0), began + epochs)
