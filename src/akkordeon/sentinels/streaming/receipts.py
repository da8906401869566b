"""What was read from a source and not acknowledged yet: by when that may be done.

    read ─▶ 1 2 3 4 5 6          trained ─▶ acknowledged
                                 or, where there are checkpoints: kept up to 4 ─▶ 1 2 3 4 acknowledged

What was trained is in the weights. Those that a run is taken up with from a checkpoint are others, and what
they do not have must come again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any

from akkordeon.core.plain_state import PlainState

__all__ = ["Receipts"]


class Receipts:
    """Where a source was after each record that it need not give again one day.

    Args:
        wanted: whether the source wants to know.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._open: dict[int, PlainState] = {}  # by the number of the record, in their order
        self._trained: dict[int, int] = {}  # of those the batch, where checkpoints are waited for
        self._waits = False

    def read(self, number: int, position: PlainState | None) -> None:
        """A record was read, and the source was there after it."""
        if self._wanted and position is not None:
            self._open[number] = position

    def done(self, numbers: Iterable[int], batch: int | None = None) -> tuple[PlainState, ...]:
        """Some were trained in a batch, or nothing will come of them: which positions to acknowledge."""
        if not self._waits:
            return self._closed(numbers)
        if batch is not None:
            self._trained.update((number, batch) for number in numbers if number in self._open)
        return ()

    def lost(self, numbers: Iterable[int]) -> None:
        """Some are in no weights: their source is to give them again."""
        self._closed(numbers)

    def wait_for_checkpoints(self) -> None:
        """From now on only what is kept is acknowledged."""
        self._waits = True

    def leave_out(self, is_missing: Callable[[int], bool]) -> None:
        """A checkpoint will not have what was trained in some batches: that is lost with the weights."""
        self.lost([number for number, batch in self._trained.items() if is_missing(batch)])

    def kept(self, until: int) -> tuple[PlainState, ...]:
        """All up to a number is in a checkpoint that nothing loses: which positions to acknowledge."""
        self._waits = True
        return self._closed(list(takewhile(lambda number: number <= until, self._open)))

    def _closed(self, numbers: Iterable[int]) -> tuple[PlainState, ...]:
        closed = [number for number in numbers if number in self._open]
        for number in closed:
            self._trained.pop(number, None)
        return tuple(map(self._open.pop, closed))

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        return {"waits": self._waits, "open": [[number, position] for number, position in self._open.items()]}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take up what another one was."""
        self._waits = state["waits"]
        self._open = dict(state["open"])
