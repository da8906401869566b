"""Checkpoints on their way to the disk, while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from akkordeon.core.errors import DataError, explain
from akkordeon.session.recovery.checkpoint import Checkpoint

__all__ = ["CheckpointWriter"]


class CheckpointWriter:
    """Writes checkpoints on a thread of its own; while one is being written, the latest alone waits.

    One that cannot be written, as on a disk that is full, harms nobody: the next is tried again.

    Args:
        write: a checkpoint.

    Attributes:
        failure: why the last could not be written, in a sentence; None if it is, or there was none.
    """

    def __init__(self, write: Callable[[Checkpoint], object]) -> None:
        self.failure: str | None = None
        self._write = write
        self._waiting: Checkpoint | None = None
        self._taken = self._done = 0  # checkpoints so far, and those of them that wait no more
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="akkordeon-checkpoints", daemon=True)
        self._thread.start()

    def tell(self, record: object) -> None:
        """Take a checkpoint to write, of all records that a watcher is told; returns at once."""
        if isinstance(record, Checkpoint):
            with self._changed:
                self._take(record)

    def write(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint written, and wait until it is, or a later one in its place.

        Raises:
            DataError: it cannot be written, or nothing is any more.
        """
        with self._changed:
            if self._closed:
                raise DataError("the run has ended, and no more checkpoints are written")
            self._take(checkpoint)
            number = self._taken
            self._changed.wait_for(lambda: self._done >= number)
            if self.failure is not None:
                raise DataError(self.failure)

    def close(self) -> None:
        """Write the one that waits, and end; doing it twice does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _take(self, checkpoint: Checkpoint) -> None:
        self._waiting = checkpoint
        self._taken += 1
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                checkpoint, self._waiting = self._waiting, None
                number = self._taken
            if checkpoint is None:
                return
            failure = None
            try:
                self._write(checkpoint)
            except Exception as error:  # whatever it is, the next may be written
                failure = explain(error)
            with self._changed:
                self.failure, self._done = failure, number
                self._changed.notify_all()
