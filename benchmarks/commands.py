"""Commands on machines, and those that are begun again whenever they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BEGUN_AGAIN_S = 2.0


class Command:
    """A command on a machine; what it says is kept.

    Args:
        home: folder that is the home on that machine, with files of Ray's that other machines do not see.
        namespace: of the machine.
        words: what Python is given.
        group: folder of the control group that it is part of.
        environment: variables besides those here.
    """

    def __init__(
        self, home: Path, namespace: str, *words: str, group: Path | None = None, **environment: str
    ) -> None:
        (home / "ray").mkdir(parents=True, exist_ok=True)
        own_files = f'mount --bind {home}/ray /tmp/ray && exec "$@"'
        joining = [] if group is None else ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
        where = [*joining, "ip", "netns", "exec", namespace, "sh", "-c", own_files, "sh", sys.executable]
        env = {
            **os.environ,
            "HOME": str(home),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        env.pop("RAY_AUTH_MODE", None)
        self.words = words
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*where, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=home
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def until(self, pattern: str, timeout_s: float = 120.0) -> re.Match[str]:
        """Wait until it says this."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            if self.ended and not self._reader.is_alive():
                break
            time.sleep(0.1)
        raise SystemExit(f"{self.words} never said {pattern!r}: {self.lines[-20:]}")

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self, timeout_s: float = 120.0) -> None:
        """Ask it to end, and wait."""
        self.signal(signal.SIGINT)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
        self._reader.join(5)


class Service:
    """A command that is begun again whenever it has ended, a while later."""

    def __init__(self, begin: Callable[[], Command]) -> None:
        self._begin = begin
        self._stopping = False
        self.past: list[Command] = []
        self.now = begin()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._stopping:
            if self.now.ended:
                time.sleep(BEGUN_AGAIN_S)
                if not self._stopping:
                    self.past.append(self.now)
                    self.now = self._begin()
            time.sleep(0.2)

    def stop(self) -> None:
        """Do not begin it again."""
        self._stopping = True
        self._keeper.join()

    def end(self) -> None:
        self.stop()
        self.now.end()

    @property
    def commands(self) -> list[Command]:
        return [*self.past, self.now]
