"""The workers of the threads engine: a dispatcher, as in Akka.

Actors with something to do stand in one ready queue; workers take the first, have it handle one
message, and put it back at the end if more waits. An actor is in the queue or at a worker, never both,
so it handles one message at a time without a lock of its own.

    send ──▶ mailbox ──▶ ready: [gate/1] [sentinel/tdp#1] [gate/0]  ──▶ worker 0, worker 1
                                     ▲                                     │
                                     └───────── more waits ────────────────┘

Actors that may block (readers of streams) get a thread of their own, so that they never hold a worker.
With one worker they do not: everything takes turns on it, in an order that depends on nothing but the
messages, and a run can be repeated to the bit.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from akkordeon.core.actor import Actor
from akkordeon.core.messages import Kind, Message
from akkordeon.core.numerics.generator import GeneratorUse
from akkordeon.core.reports import Undelivered
from akkordeon.engines.base import Listener, Load, bounded
from akkordeon.engines.interpreter import Cell, Interpreter
from akkordeon.engines.threads.device_streams import DeviceStreams, complete
from akkordeon.engines.threads.turns import TURNS
from akkordeon.engines.timeline import Timeline

__all__ = ["WorkerCell", "WorkerPool"]

JOIN_S = 5.0
"""How long ``close`` waits for a worker that is in the middle of something."""

IN_TURN = (Kind.BACKWARD, Kind.FORWARD)
"""The messages whose handling may draw from the generator of the process, or rewind it."""

NO_USE = GeneratorUse.NONE  # looked up for every message, and a member of an enum is looked up slowly

STALLED_S = 1.0
"""How long it waits for an actor that may block; it is left behind then, and ends when it wakes up."""


class WorkerCell(Cell):
    """A cell, and what wakes up the thread of its own, where it has one."""

    __slots__ = ("wake",)

    def __init__(self, actor: Actor, wake: threading.Condition | None) -> None:
        super().__init__(actor)
        self.wake = wake


class WorkerPool(Interpreter[WorkerCell]):
    """One session's actors, what is ready, and who works.

    Args:
        on_report: hears of every record, under the lock of ``reported``.
        reported: is notified after every record.
        post: what is for nobody here may be for somebody elsewhere.
        recorder: hears of every message that is handled.
        device_streams: give each gate on a GPU a stream of its own there.
        timeline: takes what everybody did when.
    """

    def __init__(
        self,
        on_report: Callable[[Any], None],
        reported: threading.Condition,
        post: Callable[[str, Message], bool],
        recorder: Listener | None,
        device_streams: bool,
        timeline: Timeline | None = None,
    ) -> None:
        self.workers: set[threading.Thread] = set()
        self.waiting = 0  # workers whose actors wait for others; guarded by the lock of ``reported``
        self._on_report = on_report
        self._reported = reported
        self._post = post
        self.recorder = recorder
        self._timeline = timeline
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self.cells: dict[str, WorkerCell] = {}
        self._ready: deque[WorkerCell] = deque()
        self._timers: list[tuple[float, int, str, Message]] = []
        self._serial = itertools.count()
        self._idle = 0
        self._running = True
        self._own_threads: set[threading.Thread] = set()  # of actors that may block; ended ones go
        self._streams = DeviceStreams() if device_streams else None

    # ── the engine's side ────────────────────────────────────────────────────────────────────────────

    def open(self, workers: int, intra_op_threads: int) -> None:
        """Start the workers, each with so many threads for one operation of PyTorch."""
        for i in range(workers):
            name, given = f"akkordeon-worker-{i}", (intra_op_threads,)
            self.workers.add(threading.Thread(target=self._work_on_ready, args=given, name=name, daemon=True))
        for thread in self.workers:
            thread.start()

    def admit(self, address: str, actor: Actor, on_its_own: bool) -> None:
        """Take an actor in, maybe with a thread of its own."""
        cell = WorkerCell(actor, threading.Condition(self._lock) if on_its_own else None)
        if self._streams is not None:
            self._streams.admit(actor)
        with self._lock:
            self.cells[address] = cell
        if on_its_own:
            name = f"akkordeon-{address}"
            thread = threading.Thread(target=self._work_on_one, args=(cell,), name=name, daemon=True)
            thread.start()
            with self._lock:
                self._own_threads = {t for t in self._own_threads if t.is_alive()} | {thread}

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox."""
        self._send(None, to, message)

    def _send(self, sender: WorkerCell | None, to: str, message: Message) -> None:
        if self._streams is not None:
            self._streams.sent(message)
        cell = self.cells.get(to)
        if cell is not None:
            with self._lock:
                if cell.alive:
                    self._deliver(cell, message)
                    return
        self._send_elsewhere(to, message)

    def send_all(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Put messages into mailboxes before anybody handles one of them."""
        strays = []
        with self._lock:
            for to, message in messages:
                cell = self.cells.get(to)
                if cell is not None and cell.alive:
                    self._deliver(cell, message)
                else:
                    strays.append((to, message))
        for to, message in strays:
            self._send_elsewhere(to, message)

    def _send_elsewhere(self, to: str, message: Message) -> None:
        """There is no such actor here; in a row of several processes this is where a message leaves."""
        if self._streams is not None:
            self._streams.dropped(message)
        if not self._post(to, message):
            self._report(Undelivered(to, message))

    def _deliver(self, cell: WorkerCell, message: Message) -> None:
        """Put a message into a mailbox and see that somebody looks; the lock is held."""
        cell.mailbox.put(message)
        if cell.wake is not None:
            cell.wake.notify()
        elif not cell.scheduled:
            cell.scheduled = True
            self._ready.append(cell)
            if self._idle:
                self._work.notify()

    def loads(self) -> dict[str, Load]:
        """Queue, count and time of every living actor."""
        with self._lock:
            return {address: cell.load() for address, cell in self.cells.items()}

    def close(self) -> None:
        """Let everybody finish the message they are at; who takes too long is left behind."""
        with self._lock:
            self._running = False
            self._work.notify_all()
            for cell in self.cells.values():
                if cell.wake is not None:
                    cell.wake.notify()
            own_threads = list(self._own_threads)
        _join(self.workers, JOIN_S)
        _join(own_threads, STALLED_S)
        with self._lock:
            self.cells.clear()
            self._ready.clear()
            self._timers.clear()

    # ── the workers' side ────────────────────────────────────────────────────────────────────────────

    def _work_on_ready(self, intra_op_threads: int) -> None:
        torch.set_num_threads(intra_op_threads)
        cell: WorkerCell | None = None
        while True:
            with self._lock:
                if cell is not None:
                    if not self._running:
                        break
                    if cell.mailbox and cell.alive:
                        self._ready.append(cell)
                    else:
                        cell.scheduled = False
                    cell = None  # while this worker has nothing to do it keeps nobody in memory
                while not self._ready and self._running:
                    self._idle += 1
                    self._work.wait(self._until_next_timer_s())
                    self._idle -= 1
                    self._fire_timers()
                if not self._running:
                    return
                if self._timers:
                    self._fire_timers()
                cell = self._ready.popleft()
                if not cell.alive:
                    cell.scheduled = False
                    cell = None
                    continue
                message = cell.mailbox.take()
            self._work_on(cell, message)
            del message
        self._leave(cell)

    def _leave(self, cell: WorkerCell) -> None:
        """It was at work when all ended and could not be told to close; what it leaves is still wanted."""
        if cell.alive:
            cell.alive = False
            self._say_last_words(cell)

    def _say_last_words(self, cell: WorkerCell) -> None:
        if self._streams is None:
            super()._say_last_words(cell)
            return
        with self._streams.handling(cell.actor, None):
            super()._say_last_words(cell)

    def _work_on_one(self, cell: WorkerCell) -> None:
        assert cell.wake is not None
        torch.set_num_threads(1)
        while True:
            with self._lock:
                while not cell.mailbox and cell.alive and self._running:
                    cell.wake.wait()
                if not (cell.alive and self._running):
                    return
                message = cell.mailbox.take()
            self._work_on(cell, message)

    def _work_on(self, cell: WorkerCell, message: Message) -> None:
        """Have an actor handle a message, in its turn at the generator where it needs one."""
        use = cell.actor.generator_use
        began_s = time.monotonic()
        if use is not NO_USE and message.kind in IN_TURN:
            TURNS.begin(use)
            try:
                self._handle(cell, message, began_s)
            finally:
                TURNS.end()
        else:
            self._handle(cell, message, began_s)
        ended_s = time.monotonic()
        cell.handled += 1
        cell.busy_s += ended_s - began_s
        if self._timeline is not None:
            self._timeline.add(cell.actor.address, message, began_s, ended_s)

    def _remove(self, cell: WorkerCell) -> None:
        """Take an actor out; what still waits for it was not delivered."""
        with self._lock:
            cell.alive = False
            if self.cells.get(cell.actor.address) is cell:
                del self.cells[cell.actor.address]
            left = [cell.mailbox.take() for _ in range(len(cell.mailbox))]
        for message in left:
            if self._streams is not None:
                self._streams.dropped(message)
            self._report(Undelivered(cell.actor.address, message))

    def _handle(self, cell: WorkerCell, message: Message, now_s: float) -> None:
        if self._streams is None:
            super()._handle(cell, message, now_s)
            return
        with self._streams.handling(cell.actor, message):
            super()._handle(cell, message, now_s)

    def _report(self, record: Any) -> None:
        if self._streams is not None:
            complete()
        with self._reported:
            self._on_report(record)
            self._reported.notify_all()

    def _after(self, cell: WorkerCell, seconds: float, message: Message) -> None:
        due_s, address = time.monotonic() + seconds, cell.actor.address
        with self._lock:
            heapq.heappush(self._timers, (due_s, next(self._serial), address, message))
            self._work.notify_all()  # somebody must wait for the new time

    def _until_next_timer_s(self) -> float | None:
        return bounded(max(0.0, self._timers[0][0] - time.monotonic())) if self._timers else None

    def _fire_timers(self) -> None:
        """Deliver what has fallen due; the lock is held."""
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            _, _, address, message = heapq.heappop(self._timers)
            cell = self.cells.get(address)
            if cell is not None:
                self._deliver(cell, message)


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    """Wait until all of them have ended, or so long."""
    deadline_s = time.monotonic() + seconds
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline_s - time.monotonic()))
