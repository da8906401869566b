"""Has the C library keep freed memory: every update frees a version of the weights and needs another.

By default glibc gives what large tensors free back to the kernel, which hands it out again page by page, each
cleared at a fault: at 784-512-512-10 a hundred faults a batch, some 10 % of the time, and more with several
threads, whose memory is apart.
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As malloc.h calls them."""

KEPT_BYTES = 2**28
"""Freed memory that is kept at the end of the heap, at most; one thread's own heaps are smaller."""

SINGLE_BYTES = 2**25
"""Larger pieces are the kernel's as before: the most that glibc lets one choose in all its versions."""


def keep_freed_memory() -> bool:
    """Ask for it, for the whole process and for good.

    Returns:
        Whether there is a C library that can be asked.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc: macOS, musl, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, SINGLE_BYTES) and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
