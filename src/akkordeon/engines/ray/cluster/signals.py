"""Ray takes signals for itself: it answers SIGTERM with a stack of its own, and forgets who did so before."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["signals_kept"]

TAKEN = ("SIGTERM", "SIGINT", "SIGHUP")
"""Those by which programs are ended."""


@contextmanager
def signals_kept() -> Iterator[None]:
    """Do something of Ray's and have signals answered as before, on whichever thread.

    Python's own handlers can be set on the main thread alone, and then Ray cannot have changed them on
    another; what the system calls (Ray's code in C++ changes that) can be set on any.
    """
    if sys.platform == "win32":
        yield
        return
    numbers = [getattr(signal, name) for name in TAKEN]
    in_python = {number: signal.getsignal(number) for number in numbers}
    in_system = {number: _get(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in in_python.items():
                if handler is not None:  # one that was not set from Python cannot be
                    signal.signal(number, handler)
        for number, called in in_system.items():
            _set(number, called)


def _get(number: int) -> int | None:
    get = ctypes.pythonapi.PyOS_getsig
    get.argtypes, get.restype = [ctypes.c_int], ctypes.c_void_p
    found: int | None = get(number)
    return found


def _set(number: int, handler: int | None) -> None:
    put = ctypes.pythonapi.PyOS_setsig
    put.argtypes, put.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    put(number, handler)
