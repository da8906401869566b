"""Weights that were kept in files, and newer ones as they appear."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from akkordeon.session.serving.weights import ServedWeights

__all__ = ["KeptWeights"]


class KeptWeights:
    """Looks whether there is something newer whenever it is asked, and reads that.

    Args:
        newest: the file, or folder, that the weights are in now.
        load: from that to a module, and the updates behind its weights; where those are not known, the
            second in which it was written stands for them.
    """

    def __init__(
        self, newest: Callable[[], Path], load: Callable[[Path], tuple[nn.Module, int | None]]
    ) -> None:
        self._newest = newest
        self._load = load
        self._read: tuple[Path, int] | None = None  # and when it was written

    def fetch(self, before: ServedWeights | None) -> ServedWeights:
        """The newest weights.

        Raises:
            DataError: there are none, or they are damaged.
        """
        path = self._newest()
        try:
            written_ns = path.stat().st_mtime_ns
        except OSError:
            written_ns = 0  # whoever loads it says so
        if before is not None and self._read == (path, written_ns):
            return before
        module, updates = self._load(path)
        self._read = path, written_ns
        seconds, least = written_ns / 1e9, 0 if before is None else before.version + 1
        version = max(least, int(seconds) if updates is None else updates)
        return ServedWeights(module.eval(), version, time.monotonic() - (time.time() - seconds))

    def batches_trained(self) -> None:
        """Nobody knows."""
