"""Memory that an update frees is there for the next one."""

import ctypes
import resource
from threading import Thread

import pytest
import torch

from akkordeon.engines.threads.allocator import keep_freed_memory

PAGE_BYTES = resource.getpagesize()
UPDATE_BYTES = 2**23


def _faults(rounds: int) -> int:
    """Pages that the kernel hands to a thread that makes and drops large tensors so often."""
    found: list[int] = []

    def work() -> None:
        for _ in range(50):  # the heap grows to what is needed
            torch.zeros(UPDATE_BYTES // 4)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(rounds):
            torch.zeros(UPDATE_BYTES // 4)
        found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc alone is asked")
def test_memory_that_is_freed_does_not_come_back_from_the_kernel_page_by_page():
    assert keep_freed_memory()
    assert _faults(50) < UPDATE_BYTES // PAGE_BYTES  # 50 times as many, if each came from the kernel


def test_a_c_library_that_cannot_be_asked_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
