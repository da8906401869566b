"""Terminals with a command in each, as several people at several machines have them."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.forks import Forked

PATIENCE_S = 100.0


class Terminal:
    """Somebody's terminal with one command in it."""

    def __init__(
        self,
        home: Path,
        *command: str,
        inside: str | None = None,
        prepare: Callable[[], None] | None = None,
        patience_s: float = PATIENCE_S,
        **environment: str,
    ) -> None:
        self.patience_s = patience_s
        env = {**os.environ, "HOME": str(home), "PYTHONUNBUFFERED": "1", **environment}
        env.pop("RAY_AUTH_MODE", None)
        self.process = (
            Forked(*command, folder=home, environment=env, merged=True, prepare=prepare)
            if inside is None
            else _elsewhere(inside, command, home, env)
        )
        self.began_s = time.monotonic()
        self.text = ""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until a line has this in it."""
        deadline_s = time.monotonic() + self.patience_s
        with contextlib.suppress(queue.Empty):  # it says nothing more
            while (line := self._lines.get(timeout=max(0.1, deadline_s - time.monotonic()))) is not None:
                self.text += line
                if found := re.search(pattern, line):
                    return found
        raise AssertionError(f"{pattern!r} never came: {self.text}")

    def end(self, code: int | None = 0) -> str:
        """Wait for the command's end; everything it said."""
        assert self.process.wait(self.patience_s) == code or code is None, self.text + self.rest()
        return self.text + self.rest()

    def rest(self) -> str:
        self._reader.join(5)
        self.process.stdout.close()
        lines = []
        while not self._lines.empty():
            lines.append(self._lines.get() or "")
        return "".join(lines)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began_s


def _elsewhere(
    namespace: str, command: tuple[str, ...], home: Path, environment: dict[str, str]
) -> subprocess.Popen[str]:
    """A command in a network namespace, with files of Ray's own."""
    (home / "ray").mkdir(exist_ok=True)
    own_files = f'mount --bind {home}/ray /tmp/ray && exec "$@"'
    words = ["ip", "netns", "exec", namespace, "sh", "-c", own_files, "sh"]
    return subprocess.Popen(
        [*words, sys.executable, "-m", "akkordeon.cli.main", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=home,
    )


@contextlib.contextmanager
def open_terminals(home: Path) -> Iterator[Callable[..., Terminal]]:
    """Open terminals; all are closed at the end, and the heads of clusters with them."""
    opened = []

    def terminal(*command: str, **options: Any) -> Terminal:
        opened.append(Terminal(home, *command, **options))
        return opened[-1]

    yield terminal
    for each in opened:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        each.rest()
    for note in (home / ".akkordeon" / "heads").glob("*.json"):
        code = "from akkordeon.engines.ray.cluster import processes; processes.end_head('localhost:{}')"
        subprocess.run(
            [sys.executable, "-c", code.format(note.stem)],
            env={**os.environ, "HOME": str(home)},
            timeout=60,
        )


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def says(terminal: Terminal, sentence: str) -> None:
    """It refuses with one sentence, in seconds even on a busy machine: Ray alone takes up to 122 s."""
    text = terminal.end(1)
    assert terminal.seconds < 60
    assert re.search(sentence, text), text
    assert text.count("\n") == 1, text
