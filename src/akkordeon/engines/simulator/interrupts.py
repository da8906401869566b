"""Ctrl-C while the simulator is at work."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupts"]


class Interrupts:
    """Keeps Ctrl-C until whoever is at work has finished its message: half of one leaves a gate in doubt.

    Does nothing outside the main thread, where signals come, nor where Ctrl-C means something else than
    ``KeyboardInterrupt``. A second Ctrl-C waits for nobody.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Self:
        self._installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._installed:
            signal.signal(signal.SIGINT, self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if error is None:
            self.check()

    def _keep(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True

    def check(self) -> None:
        """Raise the interrupt that came meanwhile."""
        if self._came:
            self._came = False
            raise KeyboardInterrupt
