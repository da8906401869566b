"""Worker processes of Ray, forked from one that has loaded all: each of them would take seconds to do so."""

from __future__ import annotations

import atexit
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
from functools import partialmethod
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

from tests.support.forks import FORKS

ASKS = Path(__file__).with_name("worker_asks.py")


@contextmanager
def forked_workers() -> Iterator[None]:
    """A cluster that is started meanwhile has its workers forked, for as long as this process is there."""
    from ray._private.parameter import RayParams

    from akkordeon.engines.ray.cluster.connection import SYSTEM_CONFIG

    forkserver.ensure_running()  # it loads while Ray starts
    folder = Path(tempfile.mkdtemp(prefix="workers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "worker.py").symlink_to(ASKS)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(100)
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    begin = partialmethod(RayParams.__init__, worker_path=str(folder / "worker.py"))
    later = {"prestart_worker_first_driver": False}  # else Ray waits for them in this process, with its lock
    with mock.patch.object(RayParams, "__init__", begin), mock.patch.dict(SYSTEM_CONFIG, later):
        yield


def _serve(listener: socket.socket) -> None:
    while True:
        from_ray, _ = listener.accept()
        with from_ray, from_ray.makefile() as said:
            FORKS.Process(target=_become, args=json.load(said), daemon=True).start()


def _become(words: list[str], path: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be the worker that Ray wants, in the process that was forked; Ray reads the environment as it loads."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray does
    sys.argv, sys.path = words, path
    runpy.run_module("ray._private.workers.default_worker", run_name="__main__")
