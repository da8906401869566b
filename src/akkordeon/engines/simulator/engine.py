"""The simulator: the same actors under virtual time; the same seed gives the same bits.

Whatever is to happen stands in a heap of (time, serial): nothing reads a clock, nothing is random that
was not seeded, and what happens at the same time happens in the order it was asked for.

    Send ──▶ wire: latency, bytes ──▶ mailbox ──▶ ready: [gate/1] [gate/0] ──▶ a core of the host
                                                                                │ cost: before
             effects are carried out ◀──────────────────────────────────────────┘
                                        then cost: after, and the core is free

Without links and costs no time passes at all, and actors take turns as on one worker thread.
Time moves while somebody waits (:meth:`Simulator.wait_until`), and at no other time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import RecipeError, StalledError
from akkordeon.core.messages import Batch, Message
from akkordeon.core.reports import ActorLost, ActorReturned, Undelivered
from akkordeon.engines.base import Engine, Load, ProcessState
from akkordeon.engines.interpreter import Interpreter
from akkordeon.engines.simulator.compute import Compute, Work
from akkordeon.engines.simulator.faults import SimulatedFault
from akkordeon.engines.simulator.hosts import Host, place
from akkordeon.engines.simulator.interrupts import Interrupts
from akkordeon.engines.simulator.links import HERE, Link, Links, Shipment, Wire
from akkordeon.engines.simulator.outages import Outages
from akkordeon.engines.simulator.sites import Site, SiteCell
from akkordeon.engines.timeline import Timeline
from akkordeon.engines.wire import require_wire_dtype

__all__ = ["Simulator"]


class Simulator(Engine, Interpreter[SiteCell]):
    """Runs actors under virtual time.

    Args:
        seed: of everything that the world does; the session's seed counts as well.
        links: between hosts; nothing takes time if not given.
        compute: what work costs; nothing if not given.
        faults: what goes wrong.
        hosts: which actors share a machine; those not named have one each.
        timeline: keep what everybody did when, for :attr:`timeline`.
        wire_dtype: of what float32 activations and gradients are sent as between hosts; see ``ak.Ray``.

    Attributes:
        timeline: what everybody did when, if that was asked for.
        events: how many things have happened.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        links: Links | Link | None = None,
        compute: Compute | None = None,
        faults: Sequence[SimulatedFault] = (),
        hosts: Sequence[Host] = (),
        timeline: bool = False,
        wire_dtype: torch.dtype | None = None,
    ) -> None:
        self.seed = seed
        self.timeline = Timeline() if timeline else None
        self.events = 0
        self._links = links if isinstance(links, Links) else Links(links or HERE)
        self._compute = compute or Compute()
        self._faults, self.may_lose = tuple(faults), bool(faults)
        self._hosts = tuple(hosts)
        self._wire_dtype = require_wire_dtype(wire_dtype)
        self._lock = threading.RLock()
        self._sites: dict[str, Site] = {}
        self._cells: dict[str, SiteCell] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = itertools.count()
        self._now_s = 0.0
        self._seeded = ""
        self._outages = Outages((), "", self._at, self._crash, self._freeze, self._ship, self._cells)
        self._reports = 0
        self._interrupt: KeyboardInterrupt | None = None  # that broke into somebody's work
        self._running = False
        self._on_report: Callable[[Any], None] = lambda record: None
        self._process: ProcessState | None = None

    # ── the engine's side ────────────────────────────────────────────────────────────────────────────

    @property
    def is_repeatable(self) -> bool:
        """Nothing here reads a clock."""
        return True

    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Begin at time 0."""
        if self._running:
            raise RecipeError("this simulator is at work for another session; make one for each")
        self._process = ProcessState()
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self._on_report = on_report
        self._seeded = f"{self.seed} {seed}"
        self._now_s, self.events, self._running = 0.0, 0, True
        self._sites.clear()
        actions = self._at, self._crash, self._freeze, self._ship
        self._outages = Outages(self._faults, self._seeded, *actions, self._cells)

    def spawn(self, spawn: Spawn, beside: str | None = None) -> None:
        """Make the actor on the host that the engine was told of; nothing else counts here."""
        address, actor = spawn.address, spawn.make()
        with self._lock:
            host = place(self._hosts, address)
            site = self._sites.get(host.name)
            if site is None:
                site = self._sites[host.name] = Site(host)
            work = Work(self._compute, address, self._seeded)
            self._cells[address] = SiteCell(actor, spawn, site, None if work.is_free else work)

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox, from outside: it takes no time."""
        with self._lock:
            cell = self._cells.get(to)
            if cell is None:
                self._report(Undelivered(to, message))
            else:
                self._deliver(cell, message)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Let things happen until the condition holds.

        Args:
            condition: looked at after every report.
            timeout_s: virtual seconds.

        Raises:
            StalledError: nothing is left that could happen, and there is no timeout.
            KeyboardInterrupt: Ctrl-C; whoever was at work has finished its message.
        """
        deadline_s = math.inf if timeout_s is None else self._now_s + timeout_s
        with Interrupts() as interrupts:
            seen = -1  # of the reports; each thread that waits counts for itself
            while True:
                with self._lock:
                    if seen != self._reports:
                        seen = self._reports
                        if condition():
                            return True
                    if not self._heap or self._heap[0][0] > deadline_s:
                        if condition():  # not all that it may look at is reported
                            return True
                        if deadline_s < math.inf:
                            self._now_s = max(self._now_s, deadline_s)
                            return False
                        raise StalledError(
                            f"nothing is left to happen at {self._now_s:g} s, "
                            "and what was waited for has not come"
                        )
                    self._now_s, _, action, arguments = heapq.heappop(self._heap)
                    self.events += 1
                    action(*arguments)
                    if self._interrupt is not None:
                        interrupt, self._interrupt = self._interrupt, None
                        raise interrupt
                interrupts.check()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done so much later."""
        with self._lock:
            self._at(self._now_s + seconds, self._do, do)

    def _do(self, do: Callable[[], None]) -> None:
        do()
        self._reports += 1  # whoever waits looks again

    def loads(self) -> dict[str, Load]:
        """Queue, count and virtual seconds at work of every living actor."""
        with self._lock:
            return {address: cell.load() for address, cell in self._cells.items()}

    def now_s(self) -> float:
        """Virtual seconds since the start."""
        return self._now_s

    def repeated(self) -> int:
        """Messages that came again when a link was healed, and were dropped."""
        return sum(wire.repeated for _, _, wire in self.wires())

    def wires(self) -> Iterator[tuple[str, str, Wire]]:
        """(from host, to host, wire) for every link that was used and takes time."""
        for site in self._sites.values():
            for other, wire in site.wires.items():
                if wire is not None:
                    yield site.host.name, other.host.name, wire

    def stop(self) -> None:
        """Drop whatever was still to happen."""
        with self._lock:
            self._running = False
            self._heap.clear()
            self._cells.clear()
            if self._process is not None:
                self._process.restore()
                self._process = None

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────

    def _at(self, time_s: float, action: Callable[..., None], *arguments: Any) -> None:
        if time_s < math.inf:  # or it never happens
            heapq.heappush(self._heap, (time_s, next(self._serial), action, arguments))

    def _send(self, sender: SiteCell, to: str, message: Message) -> None:
        cell = self._cells.get(to)
        if cell is None:
            self._report(Undelivered(to, message))
            return
        here, there = sender.site, cell.site
        wire = None
        if here is not there:
            try:
                wire = here.wires[there]
            except KeyError:
                wire = self._lay_wire(here, there)
        now_s = self._now_s
        if self._outages.partitions and here is not there:  # no host is cut off from itself
            healed_s = self._outages.healed_s(here, there)
            if healed_s > now_s:
                now_s = healed_s
                wire = wire or self._lay_wire(here, there, even_if_free=True)  # it keeps the order
        if wire is None:
            self._deliver(cell, message)
        else:
            self._ship(wire, wire.ship(cell, message, now_s))

    def _ship(self, wire: Wire, shipment: Shipment) -> None:
        self._at(shipment.arrival_s, self._arrive, wire, shipment)

    def _lay_wire(self, here: Site, there: Site, even_if_free: bool = False) -> Wire | None:
        link = self._links.find(here.key, there.key)
        rng = Random(f"{self._seeded} wire {here.host.name} {there.host.name}")
        keep_s = self._outages.keep_s
        ports = (*here.departures, *there.arrivals)
        laid = even_if_free or link != HERE or keep_s > 0 or ports or self._wire_dtype is not None
        wire = here.wires[there] = Wire(link, rng, keep_s, ports, self._wire_dtype) if laid else None
        return wire

    def _arrive(self, wire: Wire, shipment: Shipment) -> None:
        cell, message = shipment.cell, shipment.message
        if not wire.is_new(shipment):
            return
        if cell.alive:
            self._deliver(cell, message)
        else:  # somebody else may have the address by now; it was not meant for that one
            self._report(Undelivered(cell.actor.address, message))

    def _fire_timer(self, cell: SiteCell, message: Message) -> None:
        if cell.alive:
            self._deliver(cell, message)

    def _deliver(self, cell: SiteCell, message: Message) -> None:
        cell.mailbox.put(message)
        if not cell.scheduled:
            cell.scheduled = True
            self._make_ready(cell)

    def _make_ready(self, cell: SiteCell) -> None:
        site = cell.site
        site.ready.append(cell)
        if site.free > 0:
            site.free -= 1  # kept for this turn
            self._at(self._now_s, self._turn, site)

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self, site: Site) -> None:
        """A core is free: give it the first actor that can use it."""
        ready = site.ready
        while ready:
            cell = ready.popleft()
            if not cell.alive:
                continue
            if cell.frozen_until_s > self._now_s:
                self._at(cell.frozen_until_s, self._thaw, cell)
                continue
            self._begin(cell, cell.mailbox.take())
            return
        site.free += 1

    def _thaw(self, cell: SiteCell) -> None:
        if cell.alive:
            self._make_ready(cell)

    def _begin(self, cell: SiteCell, message: Message) -> None:
        cell.at_work = True
        if cell.work is None:
            self._handle(cell, message, self._now_s)
            self._end(cell, message, self._now_s, 0.0)
            return
        before_s, after_s = cell.work.seconds(message, self._now_s)
        self._at(
            self._now_s + before_s, self._middle, cell, message, self._now_s, before_s + after_s, after_s,
            cell.frozen_s,
        )  # fmt: skip

    def _middle(
        self, cell: SiteCell, message: Message, began_s: float, cost_s: float, after_s: float, frozen_s: float
    ) -> None:
        """The work is done as far as others need it; while frozen it was not."""
        if not cell.alive:
            return
        if cell.frozen_s > frozen_s:
            later_s = self._now_s + cell.frozen_s - frozen_s
            self._at(later_s, self._middle, cell, message, began_s, cost_s, after_s, cell.frozen_s)
            return
        self._handle(cell, message, self._now_s)
        if after_s and cell.alive:
            self._at(self._now_s + after_s, self._end, cell, message, began_s, cost_s)
        else:
            self._end(cell, message, began_s, cost_s)

    def _end(self, cell: SiteCell, message: Message, began_s: float, cost_s: float) -> None:
        """The actor is free for its next message, and so is the core for somebody else."""
        if not cell.at_work:  # it crashed meanwhile
            return
        cell.at_work = False
        cell.handled += 1
        cell.busy_s += cost_s
        if self.timeline is not None:
            self.timeline.add(cell.actor.address, message, began_s, self._now_s)
        site = cell.site
        if cell.alive and cell.mailbox:
            site.ready.append(cell)
        else:
            cell.scheduled = False
        if site.ready:
            self._at(self._now_s, self._turn, site)
        else:
            site.free += 1

    def _after(self, cell: SiteCell, seconds: float, message: Message) -> None:
        self._at(self._now_s + seconds, self._fire_timer, cell, message)

    def _fail(self, cell: SiteCell, doing: str, error: BaseException, batch: Batch | None = None) -> None:
        super()._fail(cell, doing, error, batch)
        if isinstance(error, KeyboardInterrupt):  # it is the user's, whose thread this is
            self._interrupt = error

    def _remove(self, cell: SiteCell) -> None:
        """Take an actor out; what still waits for it was not delivered."""
        self._take_out(cell)
        while cell.mailbox:
            self._report(Undelivered(cell.actor.address, cell.mailbox.take()))

    def _take_out(self, cell: SiteCell) -> None:
        cell.alive = False
        if self._cells.get(cell.actor.address) is cell:
            del self._cells[cell.actor.address]

    def _report(self, record: Any) -> None:
        self._reports += 1
        self._on_report(record)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────

    def _crash(self, cell: SiteCell, back_after_s: float | None, why: str) -> None:
        self._take_out(cell)
        if cell.at_work:  # its core is free, and what it was at will never be done
            cell.at_work = False
            cell.site.free += 1
            if cell.site.ready:
                cell.site.free -= 1
                self._at(self._now_s, self._turn, cell.site)
        if self.timeline is not None:
            until_s = None if back_after_s is None else self._now_s + back_after_s
            self.timeline.fault(cell.actor.address, "crash", self._now_s, until_s)
        self._report(ActorLost(cell.actor.address, why, back_after_s))
        if back_after_s is not None and cell.spawn.restore is None:
            self._at(self._now_s + back_after_s, self._come_back, cell)

    def _come_back(self, cell: SiteCell) -> None:
        address = cell.actor.address
        if address not in self._cells:
            self.spawn(cell.spawn)
            self._cells[address].busy_s, self._cells[address].handled = cell.busy_s, cell.handled
            self._report(ActorReturned(address))

    def _freeze(self, cell: SiteCell, for_s: float) -> None:
        until_s = self._now_s + for_s
        cell.frozen_s += until_s - max(cell.frozen_until_s, self._now_s)
        cell.frozen_until_s = until_s
        if self.timeline is not None:
            self.timeline.fault(cell.actor.address, "freeze", self._now_s, until_s)
