"""Three machines that are network namespaces of this one, on a bridge. Making them needs root."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["Machines", "ip"]


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@dataclass(frozen=True)
class Machines:
    """Three machines.

    Args:
        prefix: begins the names of the namespaces, and of what joins them; at most 12 letters.
        subnet: the first three numbers of their addresses.
    """

    prefix: str
    subnet: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the namespaces."""
        return tuple(f"{self.prefix}{i}" for i in range(3))

    @property
    def bridge(self) -> str:
        return f"{self.prefix}-br"

    def address(self, machine: int) -> str:
        return f"{self.subnet}.{machine + 1}"

    def link(self, machine: int) -> str:
        """The name of what joins a machine to the others."""
        return f"{self.prefix}-v{machine}"

    @contextmanager
    def up(self) -> Iterator[tuple[str, ...]]:
        """Have them for a while; the names of the namespaces.

        Raises:
            CalledProcessError: there can be none here.
        """
        self._end()  # those of a run that was killed
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("link", "set", self.bridge, "up")
            ip("addr", "add", f"{self.subnet}.254/24", "dev", self.bridge)
            for i, name in enumerate(self.names):
                ip("netns", "add", name)
                ip("link", "add", self.link(i), "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", self.link(i), "master", self.bridge, "up")
                ip("-n", name, "addr", "add", f"{self.address(i)}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "route", "add", "default", "via", f"{self.subnet}.254")
            yield self.names
        finally:
            self._end()

    def _end(self) -> None:
        for i, name in enumerate(self.names):
            for number in self.pids(i):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            ip("netns", "del", name, check=False)
            ip("link", "del", self.link(i), check=False)  # lives as long as the last process of its machine
        ip("link", "del", self.bridge, check=False)

    def pids(self, machine: int) -> list[int]:
        """The numbers of the processes of a machine."""
        words = ["ip", "netns", "pids", self.names[machine]]
        return [int(word) for word in subprocess.run(words, capture_output=True, text=True).stdout.split()]
