"""Three machines, 10.77.0.1 to 10.77.0.3: network namespaces on a bridge. Making them needs root."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MACHINES = ("akkordeon0", "akkordeon1", "akkordeon2")
BRIDGE = "akkordeon-br"


def address(machine: int) -> str:
    return f"10.77.0.{machine + 1}"


def link(machine: int) -> str:
    """The name of what joins a machine to the others."""
    return f"ak-v{machine}"


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def machines() -> Iterator[tuple[str, ...]]:
    """The names of the namespaces.

    Raises:
        CalledProcessError: there can be none here.
    """
    _end()  # those of a run that was killed
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        ip("addr", "add", "10.77.0.254/24", "dev", BRIDGE)
        for i, name in enumerate(MACHINES):
            ip("netns", "add", name)
            ip("link", "add", link(i), "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", link(i), "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{address(i)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "via", "10.77.0.254")
        yield MACHINES
    finally:
        _end()


def _end() -> None:
    for i, name in enumerate(MACHINES):
        for number in pids(i):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        ip("netns", "del", name, check=False)
        ip("link", "del", link(i), check=False)  # lives as long as the last process of its machine
    ip("link", "del", BRIDGE, check=False)


def pids(machine: int) -> list[int]:
    """The numbers of the processes of a machine."""
    words = ["ip", "netns", "pids", MACHINES[machine]]
    return [int(word) for word in subprocess.run(words, capture_output=True, text=True).stdout.split()]
