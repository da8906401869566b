"""Signals that end a command, which says what it came to; the exit code tells which it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from akkordeon.cli.errors import ENDED_BY, Signalled
from akkordeon.watch.signals import SignalCounter

__all__ = ["EndingSignals"]


class EndingSignals(SignalCounter):
    """Takes SIGTERM, Ctrl-C and SIGHUP while a command is at work.

    The first is raised as :class:`Signalled` wherever the command is, so that all it opened is closed; while
    it :meth:`counts <counted>` them they are counted instead, for a gentle end. One that comes while a
    command is on its way out ends the process at once. A SIGHUP that is ignored, as ``nohup`` has it, stays
    ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counting = False
        self._raised: Signalled | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
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

    def _count(self, number: int, frame: FrameType | None) -> None:
        super()._count(number, frame)
        if self._counting:
            return
        if self.count > 1:
            os._exit(ENDED_BY + (self.first or number))
        self._raised = Signalled(number)
        raise self._raised
