"""Writes weights while training goes on, so that whatever ends the process costs little of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from akkordeon.core.errors import AkkordeonError, DataError
from akkordeon.core.reports import BestKept, LastKept
from akkordeon.experiments.run_folder import BEST, WEIGHTS, RunFolder
from akkordeon.session.session import Session
from akkordeon.watch.view import View

__all__ = ["WeightSaver"]

SAVE_EVERY_S = 1.0
"""Weights are written no more often."""

REST_PER_WORK = 10.0
"""After writing, no other writing for so many times as long as it took."""

ASK_EVERY_S = 60.0
"""Where no round of validation has brought weights for so long, the session is asked for them."""

ASK_S = 5.0
"""How long an answer may take; if it takes longer, there will be another time."""


class WeightSaver(View):
    """A view that keeps the weights of a session in a folder as they come.

    Weights come with the rounds of a validator that keeps its last or its best. A disk that is full is told
    once; the next weights are tried again.

    Args:
        folder: where they go.
        session: where they come from.
        stopping: whether somebody wants all to end, which is when weights are fetched at once.
        asks: whether the session may be asked for weights between rounds, which no two runs do alike.
        warn: takes a sentence.
        now_s: the clock.
        ema: keep the average of the weights, which is what the validator brings then, in their place.
    """

    def __init__(
        self,
        folder: RunFolder,
        session: Session,
        stopping: Callable[[], bool],
        asks: bool,
        warn: Callable[[str], None],
        now_s: Callable[[], float] = time.monotonic,
        ema: bool = False,
    ) -> None:
        self._folder = folder
        self._session = session
        self._stopping = stopping
        self._asks = asks
        self._warn = warn
        self._now_s = now_s
        self._ema = ema
        self._due: dict[str, Mapping[str, Mapping[str, Tensor]]] = {}
        self._came_s = self._free_s = now_s()
        self._stopped = self._warned = False

    def tell(self, record: Any) -> None:
        """Remember the weights of a round."""
        if isinstance(record, BestKept):
            self._due[BEST] = record.states
        elif isinstance(record, LastKept):
            self._due[WEIGHTS] = record.states
            self._came_s = self._now_s()

    def look(self, session: Session, at_once: bool = False) -> None:
        """Write what is due, if it is time."""
        if self._stopping() and not self._stopped:
            self._stopped = at_once = True
            self._ask()
        elif self._asks and self._now_s() - self._came_s >= ASK_EVERY_S:
            self._ask()
        if self._due and (at_once or self._now_s() >= self._free_s):
            self._write()

    def finish(self) -> None:
        """Write the weights that a session ended with, and the best ones.

        Raises:
            AkkordeonError: they cannot be had or written; what was written so far is there still.
        """
        try:
            self._folder.save(WEIGHTS, self._session.module(ema=self._ema))
        finally:
            best = self._session.best_states()
            if best is not None:
                self._folder.save(BEST, self._session.network.module(best))

    def _ask(self) -> None:
        self._came_s = self._now_s()
        try:
            self._due[WEIGHTS] = self._session.states(ASK_S, ema=self._ema)
        except AkkordeonError:
            return  # they are too busy, or it is over: then there is finish()

    def _write(self) -> None:
        began_s = self._now_s()
        for name in list(self._due):
            states = self._due.pop(name)
            try:
                self._folder.save(name, self._session.network.module(states))
            except DataError as error:
                if not self._warned:
                    self._warn(f"{error}; training goes on, and the next weights are tried again")
                self._warned = True
        ended_s = self._now_s()
        self._free_s = ended_s + max(SAVE_EVERY_S, REST_PER_WORK * (ended_s - began_s))
