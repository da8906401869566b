"""Command lines in processes of their own, forked from one that has loaded all, which takes seconds."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from multiprocessing.connection import Connection
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "akkordeon.cli.main",
        "akkordeon.experiments.tasks.loader",
        "akkordeon_command",
        "sklearn.datasets",
        "torch._dynamo",
        *("filelock", "jsonschema", "psutil", "pydantic", "requests", "yaml"),  # for Ray
        "tests.support.forks",
    ]
)


COMMAND = "from akkordeon_command import main; main()"
"""What the command line is."""


class Forked:
    """The command line `akkordeon` at work; to be handled as a ``subprocess.Popen`` with text.

    Args:
        words: the arguments of the command.
        folder: where it works.
        environment: all of its environment.
        merged: whether what it says on stderr comes from stdout.
        code: what to run with these arguments instead, as ``python -c`` does: to the end of the interpreter.
        prepare: what to do in the process before.
    """

    def __init__(
        self,
        *words: str,
        folder: Path,
        environment: Mapping[str, str],
        merged: bool = False,
        code: str | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.stdout, out = _pipe()
        self.stderr, err = (None, out) if merged else _pipe()
        self._process = FORKS.Process(
            target=_run, args=(words, str(folder), dict(environment), out, err, code, prepare)
        )
        self._process.start()
        self.pid = self._process.pid
        for end in {out, err}:
            end.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("akkordeon", timeout or 0.0)
        return code

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of what it says, once it has ended. For what fits into a pipe."""
        self.wait(timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()


def _pipe() -> tuple[TextIOWrapper, Connection]:
    read, write = FORKS.Pipe(duplex=False)
    reader = os.fdopen(os.dup(read.fileno()))
    read.close()
    return reader, write


def python(code: str, *words: object, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """What ``python -c CODE WORDS`` came to; what it says must fit into a pipe."""
    process = Forked(*map(str, words), folder=Path.cwd(), environment=os.environ, code=code)
    output, errors = process.communicate(timeout_s)
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def _run(
    words: tuple[str, ...],
    folder: str,
    environment: dict[str, str],
    out: Connection,
    err: Connection,
    code: str | None,
    prepare: Callable[[], None] | None,
) -> None:
    """In the process that was forked: become what a shell would have started."""
    from akkordeon_command import main

    gc.freeze()  # to look at what was loaded copies it
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    for end in {out, err}:
        end.close()
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["akkordeon" if code is None else "-c", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare is not None:
        prepare()
    if code is None:
        main()
    else:
        failed = ctypes.pythonapi.PyRun_SimpleString(code.encode())  # ends with the code of a SystemExit
        ctypes.pythonapi.Py_Exit(-failed)
