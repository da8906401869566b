"""Worker processes of Ray, forked from one that has loaded all: each of them would take seconds to do so."""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partialmethod
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tests.support.forks import FORKS

ASKS, START = (Path(__file__).with_name(name) for name in ("worker_asks.py", "ray_start.py"))

LATER = {"prestart_worker_first_driver": False}
"""What a head is told, which else has workers begin that may never be used."""


@contextmanager
def forked_workers() -> Iterator[None]:
    """A cluster that is started meanwhile has its workers forked, for as long as this process is there."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    from akkordeon.engines.ray.cluster.connection import SYSTEM_CONFIG

    unused = {"include_log_monitor": False, "no_monitor": True}  # shows output, and rents machines
    begin = partialmethod(RayParams.__init__, worker_path=worker_path(), **unused)
    with (
        mock.patch.object(RayParams, "__init__", begin),
        mock.patch.object(Node, "start_api_server"),  # for dashboards, and Ray waits for it
        mock.patch.dict(SYSTEM_CONFIG, LATER),
    ):
        yield


def fork_workers_of_heads(path: str) -> None:
    """In the process of a command: clusters that it starts have their workers forked too, from there."""
    from akkordeon.engines.ray.cluster import processes

    start = processes._ray_start

    def forking(*options: str) -> list[str]:
        python, _, _, *words = start(*options)  # python -m ray.scripts.scripts
        return [python, str(START), path, *words, "--no-monitor", "--include-log-monitor=false"]

    processes._ray_start = forking
    processes.SYSTEM_CONFIG.update(LATER)


@cache
def worker_path() -> str:
    """What Ray is to run for a worker; it is served from now on."""
    forkserver.ensure_running()  # it loads while Ray starts
    folder = Path(tempfile.mkdtemp(prefix="workers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "worker.py").symlink_to(ASKS)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(100)
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    return str(folder / "worker.py")


def _serve(listener: socket.socket) -> None:
    while True:
        from_ray, _ = listener.accept()
        with from_ray, from_ray.makefile() as said:
            FORKS.Process(target=_become, args=json.load(said), daemon=True).start()


def _become(words: list[str], path: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be the worker that Ray wants, in the process that was forked; Ray reads the environment as it loads."""
    gc.freeze()  # to look at what was loaded copies it
    os.setpgid(0, 0)  # as Ray has it, which kills the whole group of a worker whose owner was killed
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray does
    sys.argv, sys.path = words, path
    runpy.run_module("ray._private.workers.default_worker", run_name="__main__")
