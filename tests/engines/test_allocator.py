"""Memory that an update frees is there for the next one."""

import ctypes
import subprocess
import sys

import pytest

from akkordeon.engines.threads import allocator

UPDATES = """
import ctypes, resource, runpy, sys
if sys.argv[2] == "kept":
    assert runpy.run_path(sys.argv[1])["keep_freed_memory"]()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for update in range(20):
    if update == 10:  # the heap has grown to what is needed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    weights = [libc.malloc(2**20) for _ in range(16)]
    for memory in weights:
        ctypes.memset(memory, 1, 2**20)
    for memory in weights:
        libc.free(memory)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
    """Pages that the kernel hands to ten updates of 16 MiB of weights, in a process of its own."""
    command = [sys.executable, "-c", UPDATES, allocator.__file__, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc alone is asked")
def test_memory_that_is_freed_does_not_come_back_from_the_kernel_page_by_page():
    assert _faults("as it comes") > 10_000
    assert _faults("kept") < 100


def test_a_c_library_that_cannot_be_asked_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory() is False
