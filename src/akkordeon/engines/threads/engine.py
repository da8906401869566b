"""The threads engine: actors share the worker threads of this process.

Whatever belongs to one session is in a :class:`WorkerPool` of its own. An actor that was stuck in its
message when its session ended finds that pool when it wakes up, and not the next session of the same engine.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from akkordeon.core.actor import Spawn
from akkordeon.core.checks import require_whole
from akkordeon.core.errors import RecipeError, SessionError
from akkordeon.core.messages import Message
from akkordeon.engines.base import Engine, Load, ProcessState, bounded
from akkordeon.engines.threads.allocator import keep_freed_memory
from akkordeon.engines.threads.workers import WorkerCell, WorkerPool
from akkordeon.engines.timeline import Timeline
from akkordeon.engines.timers import Timers

__all__ = ["Threads"]


class Threads(Engine):
    """Runs actors on worker threads of this process.

    Args:
        workers: how many; as many as cores, and at least two, if not given. One worker makes a run
            repeatable.
        intra_op_threads: of each worker, for one operation of PyTorch. More pay where one gate has all the
            work: one worker with as many as there are cores is about as fast as a plain loop.
        device_streams: each gate on a GPU has a CUDA stream of its own, so that small kernels of several
            gates run at the same time; without it they are one after the other. It needs a GPU.
        timeline: keep what everybody did when, for :attr:`timeline`: the latest, in seconds of
            ``time.monotonic()``.

    Raises:
        RecipeError: fewer than one worker, or than one thread; or there is no GPU for streams.
    """

    may_lose = False  # whoever is in this process ends with it

    def __init__(
        self,
        workers: int | None = None,
        intra_op_threads: int = 1,
        *,
        device_streams: bool = False,
        timeline: bool = False,
    ) -> None:
        require_whole("workers", workers, optional=True)
        require_whole("intra_op_threads", intra_op_threads)
        if device_streams and not torch.cuda.is_available():
            raise RecipeError("device_streams are of GPUs, and torch.cuda knows none here; leave that out")
        self._device_streams = device_streams
        self.timeline = Timeline(latest=True) if timeline else None
        self.intra_op_threads = intra_op_threads
        self.workers = workers or max(2, os.cpu_count() or 2)
        self._reported = threading.Condition(threading.RLock())
        self._timers = Timers(self._reported)
        self._pool: WorkerPool | None = None
        self._process: ProcessState | None = None

    @property
    def is_repeatable(self) -> bool:
        """With one worker all take turns on it."""
        return self.workers == 1

    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Start the workers; they end with the interpreter, if nobody stops them before.

        Raises:
            SessionError: it carries a session already.
        """
        if self._process is not None:
            raise SessionError("this engine carries a session already; give each session one of its own")
        self._process = ProcessState()
        keep_freed_memory()
        torch.manual_seed(seed)
        self._pool = WorkerPool(
            on_report, self._reported, self._post, self.recorder, self._device_streams, self.timeline
        )
        self._pool.open(self.workers, self.intra_op_threads)
        atexit.register(self.stop)  # a thread that is inside of PyTorch when Python ends aborts the process

    def _post(self, to: str, message: Message) -> bool:
        """Send a message to another process, in a row of several; False if nobody has that address."""
        return False

    def spawn(self, spawn: Spawn, beside: str | None = None) -> None:
        """Make the actor here: within one process there is nothing to choose."""
        actor = spawn.make()
        on_its_own = actor.may_block and not self.is_repeatable
        self._started_pool().admit(spawn.address, actor, on_its_own)

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox."""
        self._started_pool().send(to, message)

    def send_all(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Put messages into mailboxes before anybody handles one of them."""
        self._started_pool().send_all(messages)

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done later, on a thread of its own."""
        self._timers.after(seconds, do)

    @property
    def _cells(self) -> Mapping[str, WorkerCell]:
        """The actors at work, by address."""
        return {} if self._pool is None else self._pool.cells

    def _started_pool(self) -> WorkerPool:
        assert self._pool is not None, "the engine was never started"
        return self._pool

    def now_s(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait for reports; the workers do the rest.

        Raises:
            SessionError: this is the last worker that is free, and what it waits for would never come.
        """
        with self._reported:
            if condition():
                return True
            pool = self._pool
            if pool is None or threading.current_thread() not in pool.workers:
                return self._reported.wait_for(condition, bounded(timeout_s))
            self.check_may_wait()
            pool.waiting += 1
            try:
                return self._reported.wait_for(condition, bounded(timeout_s))
            finally:
                pool.waiting -= 1

    def check_may_wait(self) -> None:
        """Refuse a call from within an actor, if there is no other worker left to bring what it waits for."""
        pool = self._pool
        if pool is None or threading.current_thread() not in pool.workers:
            return
        if pool.waiting + 1 >= len(pool.workers):
            only = "the only worker" if len(pool.workers) == 1 else "the last worker that is free"
            raise SessionError(
                f"this call would wait for actors that need the thread it comes from, {only}: call it from "
                "outside of sources, losses and modules, or give the engine more workers"
            )

    def loads(self) -> dict[str, Load]:
        """Queue, count and time of every living actor."""
        return {} if self._pool is None else self._pool.loads()

    def stop(self) -> None:
        """Let the workers finish the message they are at, and end."""
        atexit.unregister(self.stop)
        self._timers.stop()
        if self._pool is not None:
            self._pool.close()
        if self._process is not None:
            self._process.restore()
            self._process = None
