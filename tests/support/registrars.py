"""The processes of registrars, for tests that kill them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

import psutil

__all__ = ["registrars"]


def registrars(but: Collection[psutil.Process] = ()) -> list[psutil.Process]:
    """Those below this process, but for some; networks of tests before may still be ending."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process not in but and "ray::Registrar" in (process.name(), *process.cmdline()[:1]):
                found.append(process)
    return found
