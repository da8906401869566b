"""Signals that end a command, which says what it came to; the exit code tells which it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from akkordeon.cli.errors import ENDED_BY, Signalled

__all__ = ["EndingSignals"]


class EndingSignals:
    """Takes SIGTERM, Ctrl-C and SIGHUP while a command is at work.

    The first is raised as :class:`Signalled` wherever the command is, so that all it opened is closed; while
    it :meth:`counts <counted>` them they are counted instead, for a gentle end. One that comes while a
    command is on its way out ends the process at once. A SIGHUP that is ignored, as ``nohup`` has it, stays
    ignored.

    Attributes:
        first: the number of the first, if there was one.
        count: how many there were.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.count = 0
        self._counting = False
        self._raised: Signalled | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is None or (name != "SIGINT" and signal.getsignal(number) is signal.SIG_IGN):
                    continue
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._raised is not None and error is not self._raised:
            raise self._raised from None  # what came out instead, as of Ray in C++, followed from it

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Have signals counted, and do nothing else."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def raise_first(self) -> None:
        """Raise the first signal that was counted, if there was one."""
        if self.first is not None:
            raise Signalled(self.first)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.first is None:
            self.first = number
        if self._counting:
            return
        if self.count > 1:
            os._exit(ENDED_BY + self.first)
        self._raised = Signalled(number)
        raise self._raised
