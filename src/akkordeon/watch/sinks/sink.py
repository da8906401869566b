"""What a sink is: it is called with every record of a session, and closed after it."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from akkordeon.core.errors import RecipeError, explain
from akkordeon.core.reports import GateStatus
from akkordeon.watch.sinks.points import Point, Points

__all__ = ["Sink", "flat", "require_extra"]

GATE_EVERY_S = 5.0
"""How often the numbers of a gate are written, which a live view asks for four times a second."""

WRITE_S = 30.0
"""How long the end of a sink waits for a write that goes on."""

LAST_WORDS = 0
"""The number of the question to which a gate answers at its end, when nobody asks."""


class Sink(ABC):
    """Writes the numbers of a session somewhere; a new one is one class with :meth:`write` and :meth:`end`.

    ::

        with ak.TensorBoard("runs/first") as board, ak.run(network) as session:
            session.subscribe(board)

    The session ends before the sink, so that this has the last that gates tell. What a gate tells is written
    whenever somebody asks gates how they are (``session.status()``, a live view), and at the end.

    Args:
        now_s: the clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._points = Points()
        self._written_s: dict[str, float] = {}
        self._lock = threading.Lock()  # a record may come while it is closed
        self._closed = False

    def __call__(self, record: Any) -> None:
        """Take in a record of :mod:`akkordeon.core.reports`. Called from one thread at a time."""
        with self._lock:
            if self._closed or (isinstance(record, GateStatus) and not self._is_due(record)):
                return
            for point in self._points.of(record):
                self.write(point)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is left, and end; doing it twice does nothing. What fails then is logged.

        Where a write does not end, as of a disk that is far and gone, nobody waits for it any longer.
        """
        if not self._lock.acquire(timeout=WRITE_S):
            self._closed = True
            self._complain(f"a write has not ended for {WRITE_S:g} s")
            return
        try:
            if self._closed:
                return
            self._closed = True
        finally:
            self._lock.release()
        try:
            self.end()
        except Exception as error:  # whatever its own libraries raise
            self._complain(explain(error))

    def _complain(self, why: str) -> None:
        name = type(self).__name__
        logging.getLogger(__name__).error("%s could not write the last of it: %s", name, why)

    @abstractmethod
    def write(self, point: Point) -> None:
        """Write the numbers of one moment. One that raises ends the sink alone, and is logged."""

    @abstractmethod
    def end(self) -> None:
        """Write what is left, and let go of files and ports."""

    def _is_due(self, status: GateStatus) -> bool:
        """Whether it is time for this gate again; what it tells at its end always is."""
        now_s = self._now_s()
        waited_s = now_s - self._written_s.get(status.address, float("-inf"))
        if status.probe == LAST_WORDS or waited_s >= GATE_EVERY_S:
            self._written_s[status.address] = now_s
            return True
        return False


def require_extra(module: str, what: str, extra: str | None) -> None:
    """Refuse what needs a library that is not there.

    Args:
        module: its name.
        what: needs it, in words.
        extra: of this package that brings it; None where none does.

    Raises:
        RecipeError: it is not installed.
    """
    if find_spec(module) is None:
        wanted = module if extra is None else f"'akkordeon[{extra}]'"
        raise RecipeError(f"{what} needs {module}, which is not here: pip install {wanted}")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings in settings under one name each, as ``downpour.replicas``, without those that are None."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found
