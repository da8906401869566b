"""The threads engine: a dispatcher, as in Akka.

Actors with something to do stand in one ready queue; workers take the first, have it handle one
message, and put it back at the end if more waits. An actor is in the queue or at a worker, never both,
so it handles one message at a time without a lock of its own.

    send ──▶ mailbox ──▶ ready: [gate/1] [sentinel/tdp#1] [gate/0]  ──▶ worker 0, worker 1
                                     ▲                                     │
                                     └───────── more waits ────────────────┘

Actors that may block (readers of streams) get a thread of their own, so that they never hold a worker.
With one worker they do not: everything takes turns on it, in an order that depends on nothing but the
messages, and a run can be repeated to the bit.

Whatever belongs to one session is in a ``_Floor`` of its own. An actor that was stuck in its message when
its session ended finds that floor when it wakes up, and not the next session of the same engine.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from akkordeon.core.actor import Actor, After, Mailbox, Report, Send, Stop
from akkordeon.core.checks import require_whole
from akkordeon.core.errors import SessionError
from akkordeon.core.generator import Use
from akkordeon.core.messages import Kind, Message, describe
from akkordeon.core.reports import ActorFailed, Undelivered
from akkordeon.engines.base import Engine, Listener, Load, ProcessState, bounded
from akkordeon.engines.turns import TURNS

__all__ = ["Threads"]

JOIN_S = 5.0
"""How long ``stop`` waits for a worker that is in the middle of something."""

IN_TURN = (Kind.BACKWARD, Kind.FORWARD)
"""The messages whose handling may draw from the generator of the process, or rewind it."""

NO_USE = Use.NONE  # looked up for every message, and a member of an enum is looked up slowly

STALLED_S = 1.0
"""How long it waits for an actor that may block; it is left behind then, and ends when it wakes up."""


class _Cell:
    """An actor, its mailbox, and where it stands."""

    __slots__ = ("actor", "alive", "busy_s", "handled", "mailbox", "scheduled", "wake")

    def __init__(self, actor: Actor, wake: threading.Condition | None) -> None:
        self.actor = actor
        self.mailbox = Mailbox()
        self.scheduled = False
        self.alive = True
        self.wake = wake  # of its own thread, where it has one
        self.handled = 0
        self.busy_s = 0.0


class Threads(Engine):
    """Runs actors on worker threads of this process.

    Args:
        workers: how many; as many as cores, and at least two, if not given. One worker makes a run
            repeatable.

    Raises:
        RecipeError: fewer than one worker.
    """

    _repeatable = True  # with one worker

    def __init__(self, workers: int | None = None) -> None:
        require_whole("workers", workers, optional=True)
        self.workers = workers or max(2, os.cpu_count() or 2)
        self._reported = threading.Condition(threading.RLock())
        self._floor: _Floor | None = None
        self._process: ProcessState | None = None

    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Start the workers; they end with the interpreter, if nobody stops them before.

        Raises:
            SessionError: it carries a session already.
        """
        if self._process is not None:
            raise SessionError("this engine carries a session already; give each session one of its own")
        self._process = ProcessState()
        torch.manual_seed(seed)
        self._floor = _Floor(on_report, self._reported, self._post, self.recorder)
        self._floor.open(self.workers)
        atexit.register(self.stop)  # a thread that is inside of PyTorch when Python ends aborts the process

    def _post(self, to: str, message: Message) -> bool:
        """Send a message to another process, in a row of several; False if nobody has that address."""
        return False

    def spawn(
        self,
        address: str,
        make: Callable[[], Actor],
        resources: Mapping[str, float] | None = None,
        beside: str | None = None,
    ) -> None:
        """Make the actor here: within one process there is nothing to choose."""
        actor = make()
        on_its_own = actor.may_block and (self.workers > 1 or not self._repeatable)
        self._on_the_floor().admit(address, actor, on_its_own)

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox."""
        self._on_the_floor().send(to, message)

    def send_all(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Put messages into mailboxes before anybody handles one of them."""
        self._on_the_floor().send_all(messages)

    @property
    def _cells(self) -> Mapping[str, _Cell]:
        """The actors at work, by address."""
        return {} if self._floor is None else self._floor._cells

    def _on_the_floor(self) -> _Floor:
        assert self._floor is not None, "the engine was never started"
        return self._floor

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
            floor = self._floor
            if floor is None or threading.current_thread() not in floor.workers:
                return self._reported.wait_for(condition, bounded(timeout_s))
            self.check_may_wait()
            floor.waiting += 1
            try:
                return self._reported.wait_for(condition, bounded(timeout_s))
            finally:
                floor.waiting -= 1

    def check_may_wait(self) -> None:
        """Refuse a call from within an actor, if there is no other worker left to bring what it waits for."""
        floor = self._floor
        if floor is None or threading.current_thread() not in floor.workers:
            return
        if floor.waiting + 1 >= len(floor.workers):
            only = "the only worker" if len(floor.workers) == 1 else "the last worker that is free"
            raise SessionError(
                f"this call would wait for actors that need the thread it comes from, {only}: call it from "
                "outside of sources, losses and modules, or give the engine more workers"
            )

    def loads(self) -> dict[str, Load]:
        """Queue, count and time of every living actor."""
        return {} if self._floor is None else self._floor.loads()

    def stop(self) -> None:
        """Let the workers finish the message they are at, and end."""
        atexit.unregister(self.stop)
        if self._floor is not None:
            self._floor.close()
        if self._process is not None:
            self._process.restore()
            self._process = None


class _Floor:
    """One session's actors, what is ready, and who works.

    Args:
        on_report: hears of every record, under the lock of ``reported``.
        reported: is notified after every record.
        post: what is for nobody here may be for somebody elsewhere.
        recorder: hears of every message that is handled.
    """

    def __init__(
        self,
        on_report: Callable[[Any], None],
        reported: threading.Condition,
        post: Callable[[str, Message], bool],
        recorder: Listener | None,
    ) -> None:
        self.workers: set[threading.Thread] = set()
        self.waiting = 0  # workers whose actors wait for others; guarded by the lock of ``reported``
        self._on_report = on_report
        self._reported = reported
        self._post = post
        self._recorder = recorder
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._cells: dict[str, _Cell] = {}
        self._ready: deque[_Cell] = deque()
        self._timers: list[tuple[float, int, str, Message]] = []
        self._serial = itertools.count()
        self._idle = 0
        self._running = True
        self._own_threads: set[threading.Thread] = set()  # of actors that may block; ended ones go

    # ── the engine's side ────────────────────────────────────────────────────────────────────────────

    def open(self, workers: int) -> None:
        """Start the workers."""
        for i in range(workers):
            thread = threading.Thread(target=self._work_on_ready, name=f"akkordeon-worker-{i}", daemon=True)
            self.workers.add(thread)
        for thread in self.workers:
            thread.start()

    def admit(self, address: str, actor: Actor, on_its_own: bool) -> None:
        """Take an actor in, maybe with a thread of its own."""
        cell = _Cell(actor, threading.Condition(self._lock) if on_its_own else None)
        with self._lock:
            self._cells[address] = cell
        if on_its_own:
            name = f"akkordeon-{address}"
            thread = threading.Thread(target=self._work_on_one, args=(cell,), name=name, daemon=True)
            thread.start()
            with self._lock:
                self._own_threads = {t for t in self._own_threads if t.is_alive()} | {thread}

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox."""
        cell = self._cells.get(to)
        if cell is not None:
            with self._lock:
                if cell.alive:
                    self._deliver(cell, message)
                    return
        self._elsewhere(to, message)

    def send_all(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Put messages into mailboxes before anybody handles one of them."""
        strays = []
        with self._lock:
            for to, message in messages:
                cell = self._cells.get(to)
                if cell is not None and cell.alive:
                    self._deliver(cell, message)
                else:
                    strays.append((to, message))
        for to, message in strays:
            self._elsewhere(to, message)

    def _elsewhere(self, to: str, message: Message) -> None:
        """There is no such actor here; in a row of several processes this is where a message leaves."""
        if not self._post(to, message):
            self._report(Undelivered(to, message))

    def _deliver(self, cell: _Cell, message: Message) -> None:
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
            return {
                address: Load(len(cell.mailbox), cell.handled, cell.busy_s)
                for address, cell in self._cells.items()
            }

    def close(self) -> None:
        """Let everybody finish the message they are at; who takes too long is left behind."""
        with self._lock:
            self._running = False
            self._work.notify_all()
            for cell in self._cells.values():
                if cell.wake is not None:
                    cell.wake.notify()
            own_threads = list(self._own_threads)
        _join(self.workers, JOIN_S)
        _join(own_threads, STALLED_S)
        with self._lock:
            self._cells.clear()
            self._ready.clear()
            self._timers.clear()

    # ── the workers' side ────────────────────────────────────────────────────────────────────────────

    def _work_on_ready(self) -> None:
        torch.set_num_threads(1)
        cell: _Cell | None = None
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
                    self._ring_timers()
                if not self._running:
                    return
                if self._timers:
                    self._ring_timers()
                cell = self._ready.popleft()
                if not cell.alive:
                    cell.scheduled = False
                    cell = None
                    continue
                message = cell.mailbox.take()
            self._handle(cell, message)
            del message
        self._leave(cell)

    def _leave(self, cell: _Cell) -> None:
        """It was at work when all ended and could not be told to close; what it leaves is still wanted."""
        if cell.alive:
            cell.alive = False
            self._speak(cell.actor)

    def _work_on_one(self, cell: _Cell) -> None:
        assert cell.wake is not None
        torch.set_num_threads(1)
        while True:
            with self._lock:
                while not cell.mailbox and cell.alive and self._running:
                    cell.wake.wait()
                if not (cell.alive and self._running):
                    return
                message = cell.mailbox.take()
            self._handle(cell, message)

    def _handle(self, cell: _Cell, message: Message) -> None:
        """Have an actor handle a message, and carry out what it yields as it yields it."""
        actor = cell.actor
        began_s = time.monotonic()
        in_turn = actor.use is not NO_USE and message.kind in IN_TURN
        if in_turn:
            TURNS.begin(actor.use)
        try:
            receive = actor.receive if self._recorder is None else partial(self._recorder.listen, actor)
            for effect in receive(message, began_s):
                kind = type(effect)
                if kind is Send:
                    self.send(effect.to, effect.message)  # type: ignore[union-attr]
                elif kind is Report:
                    self._report(effect.record)  # type: ignore[union-attr]
                elif kind is After:
                    self._after(actor.address, effect.seconds, effect.message)  # type: ignore[union-attr]
                elif kind is Stop:
                    self._remove(cell)
                    break
        except BaseException as error:  # SystemExit too: a worker that died of it would leave all waiting
            self._fail(cell, message, error)
        finally:
            if in_turn:
                TURNS.end()
        cell.handled += 1
        cell.busy_s += time.monotonic() - began_s

    def _fail(self, cell: _Cell, message: Message, error: BaseException) -> None:
        self._remove(cell)
        self._report(ActorFailed(cell.actor.address, describe(message), error))
        self._speak(cell.actor)

    def _speak(self, actor: Actor) -> None:
        """Have an actor say its last words."""
        try:
            for effect in actor.last_words():
                if isinstance(effect, Send):
                    self.send(effect.to, effect.message)
                elif isinstance(effect, Report):
                    self._report(effect.record)
        except BaseException as error_of_last_words:
            self._report(ActorFailed(actor.address, "its last words", error_of_last_words))

    def _remove(self, cell: _Cell) -> None:
        """Take an actor out; what still waits for it was not delivered."""
        with self._lock:
            cell.alive = False
            if self._cells.get(cell.actor.address) is cell:
                del self._cells[cell.actor.address]
            left = [cell.mailbox.take() for _ in range(len(cell.mailbox))]
        for message in left:
            self._report(Undelivered(cell.actor.address, message))

    def _report(self, record: Any) -> None:
        with self._reported:
            self._on_report(record)
            self._reported.notify_all()

    def _after(self, address: str, seconds: float, message: Message) -> None:
        with self._lock:
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), address, message))
            self._work.notify_all()  # somebody must wait for the new time

    def _until_next_timer_s(self) -> float | None:
        return bounded(max(0.0, self._timers[0][0] - time.monotonic())) if self._timers else None

    def _ring_timers(self) -> None:
        """Deliver what has fallen due; the lock is held."""
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            _, _, address, message = heapq.heappop(self._timers)
            cell = self._cells.get(address)
            if cell is not None:
                self._deliver(cell, message)


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    """Wait until all of them have ended, or so long."""
    deadline_s = time.monotonic() + seconds
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline_s - time.monotonic()))
