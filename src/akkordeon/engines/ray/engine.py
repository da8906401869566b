"""The engine's part in the driver, the user's process: it ships actors to hosts, and hears of everything."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from akkordeon.core.actor import Spawn
from akkordeon.core.addresses import reader_of
from akkordeon.core.checks import require_whole
from akkordeon.core.errors import ClusterError, SessionError, explain
from akkordeon.core.messages import Message
from akkordeon.core.reports import ActorFailed, ActorLost, ClusterLost, SentinelEnded, Undelivered
from akkordeon.engines.base import Engine, Load, ProcessState, bounded
from akkordeon.engines.ray.cluster.connection import ClusterProbe, join, parse_address, require_ray
from akkordeon.engines.ray.cluster.heartbeats import HEARTBEAT_S, SILENT_S, Heartbeats, Lost
from akkordeon.engines.ray.cluster.spans import fetch_spans
from akkordeon.engines.ray.cluster.waits import FETCH_S, within
from akkordeon.engines.ray.host_pool import READY_S, SESSION_HOST, HostPool, shipped
from akkordeon.engines.ray.placement import Placement, check_row, is_visitor, require_placement
from akkordeon.engines.timeline import Timeline
from akkordeon.engines.timers import Timers
from akkordeon.engines.wire import require_wire_dtype

if TYPE_CHECKING:
    from akkordeon.engines.ray.hosts import Dispatcher
    from akkordeon.engines.ray.serialization import Serialized

__all__ = ["Ray"]

STOP_S = 10.0
"""How long ``stop`` waits for the thread that follows the hosts, which may wait for one that is stuck."""

LOADS_S = 2.0
"""How long ``loads`` waits for the hosts."""

CLUSTER_CHECK_S = 2.0
"""How often Ray's own processes are looked after."""

HEAD_S = 20.0
"""How long the head of the cluster may be away. Ray ends this process, without a word, after a minute."""


class Ray(Engine):
    """Runs gates in processes of a Ray cluster, and sentinels in one on this machine.

    Args:
        address: HOST:PORT of a cluster that this machine belongs to. None uses the one that this process
            is connected to, or starts a local one that ends with the session.
        placement: which gates share a host: ``"spread"`` gives each its own, ``"pack"`` puts all into
            one, ``[[0, 1], [2]]`` has gates 0 and 1 share one.
        wire_dtype: what float32 activations and gradients are narrowed to between hosts: ``torch.bfloat16``,
            ``torch.float16``, or ``torch.int8`` with a scale for each sample; None sends them as they are.
        workers: threads at work in each host; as the threads engine has it if not given, and one for a
            replica.
        timeline: keep what everybody did when, for :attr:`timeline`; it has it all when the session ended.

    Raises:
        RecipeError: another wire_dtype, no placement, or no number of workers.
        ClusterError: an address of another form.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        placement: Placement = "spread",
        wire_dtype: torch.dtype | None = None,
        workers: int | None = None,
        timeline: bool = False,
    ) -> None:
        if address is not None:
            parse_address(address)
        require_placement(placement)
        require_whole("workers", workers, optional=True)
        self.address, self.placement, self.workers = address, placement, workers
        self.wire_dtype = require_wire_dtype(wire_dtype)
        self.timeline = Timeline(latest=True) if timeline else None
        self._reported = threading.Condition(threading.RLock())
        self._timers = Timers(self._reported)
        self._key = uuid.uuid4().hex  # of the session host, for those that report to it; each has a new one
        self._pool = HostPool(0)
        self._heartbeats = Heartbeats()
        self._local: Dispatcher | None = None  # holds what cannot be shipped
        self._local_addresses: set[str] = set()
        self._over = threading.Event()
        self._moving = False  # whether the session host died and another is on its way
        self._cluster: ClusterProbe | None = None
        self._thread: threading.Thread | None = None
        self._on_report: Callable[[Any], None] = lambda record: None
        self._process: ProcessState | None = None
        self._leave: Callable[[], None] = lambda: None
        self._seed = 0

    # ── beginning and ending ─────────────────────────────────────────────────────────────────────────

    def check_row(self, row: Iterable[str]) -> None:
        """Refuse a row that the placement is not one of."""
        check_row(row, self.placement)

    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Join or start the cluster, and make the session host.

        Raises:
            SessionError: it carries a session already, or is asked to record.
            ClusterError: there is no cluster, or it does not let us in.
        """
        if self._process is not None:
            raise SessionError("this engine carries a session already; give each session one of its own")
        if self.recorder is not None:
            raise SessionError("the Ray engine cannot record yet; record on threads")
        leave = join(self.address)
        self._process, self._leave = ProcessState(), leave
        torch.manual_seed(seed)
        self._on_report, self._seed, self._moving = on_report, seed, False
        self._over = threading.Event()  # a thread of a time before may be on its way out still
        self._pool, self._heartbeats = self._new_pool(seed), Heartbeats()
        self._pool.spans_max = 0 if self.timeline is None else self.timeline.spans_max
        try:
            self._cluster = ClusterProbe()
            self._pool.start_session_host()
        except BaseException:
            self.stop()
            raise
        self._thread = threading.Thread(target=self._follow, name="akkordeon-ray", daemon=True)
        self._thread.start()
        threading.Thread(target=self._look_after, name="akkordeon-ray-cluster", daemon=True).start()

    def _new_pool(self, seed: int) -> HostPool:
        return HostPool(seed, placement=self.placement, wire_dtype=self.wire_dtype, workers=self.workers)

    def stop(self) -> None:
        """End the hosts, and the cluster if it was started here."""
        self._over.set()
        self._timers.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_S)
        self._thread = None
        if not self._pool.lost:  # else Ray would have nobody to tell
            if self.timeline is not None:  # hosts end whatever comes of this
                within(STOP_S, partial(fetch_spans, require_ray(), dict(self._pool.hosts), self.timeline))
            within(STOP_S, self._end_hosts)
        if self._local is not None:
            self._local.stop()
            self._local = None
        self._pool.clear()
        self._local_addresses.clear()
        if self._process is not None:
            self._leave()
            self._process.restore()
            self._process = None

    def _end_hosts(self) -> None:
        self._pool.end_spare()
        for name, handle in list(self._pool.hosts.items()):
            self._end_host(name, handle)

    def _end_host(self, name: str, handle: Any) -> None:
        """End a process."""
        self._pool.end(name, handle)

    # ── actors ───────────────────────────────────────────────────────────────────────────────────────

    def spawn(self, spawn: Spawn, beside: str | None = None) -> None:
        """Make an actor: a sentinel or its reader in the session host or beside another, others by placement.

        Raises:
            RecipeError: an actor that does not belong here cannot travel.
            ClusterError: the process that it belongs into has died.
        """
        address = spawn.address
        if not is_visitor(address):
            self.spawn_all([spawn])
            return
        try:
            maker: Serialized | None = shipped(spawn.make)
        except TypeError:
            maker = None
        host = SESSION_HOST if maker is None or beside is None else self._pool.places.get(beside, "")
        if host == SESSION_HOST:
            self.wait_until(lambda: not self._moving, READY_S)
        if host not in self._pool.hosts:
            raise ClusterError(f"the process that {address} belongs into has died")
        if maker is None:
            self._spawn_here(spawn)
        else:
            self._pool.ship({address: host}, {address: maker})
        self._tell_routes({address: host})

    def meanwhile(self, do: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        """Have something done that may take a process some seconds; reports go on meanwhile."""
        self._timers.meanwhile(do, then)

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """Make the actors of a network, their hosts at once."""
        self._tell_routes(self._pool.spawn_all(spawns))

    def retire(self, addresses: Iterable[str]) -> None:
        """End the hosts that have nobody else, or as soon as they have nobody."""
        self._pool.retire(list(addresses))

    def _spawn_here(self, spawn: Spawn) -> None:
        """Make an actor in this process, which the others reach through the session host."""
        if self._local is None:
            from akkordeon.engines.ray.hosts import Dispatcher

            self._local = Dispatcher(self._post, self.workers)
            self._local.timeline = self.timeline
            self._local._reported = self._reported  # one lock: each side may report while the other does
            self._local.start(self._report, self._seed)
        self._local.spawn(spawn)
        self._local_addresses.add(spawn.address)
        self._pool.place({spawn.address: SESSION_HOST})

    def _tell_routes(self, places: Mapping[str, str]) -> None:
        """Tell every host where these actors are, and where to report; wait until they know."""
        hosts = dict(self._pool.hosts)
        told = []
        if (session_host := hosts.pop(SESSION_HOST, None)) is not None:
            told = [handle.add_listener.remote(self._key, session_host) for handle in hosts.values()]
        self._pool.tell_routes(places, list(self._local_addresses), told)

    def _settle_session_host(self) -> None:
        """See that the session host, perhaps a new one, and the others know each other."""
        self._pool.make({})
        self._tell_routes({"": SESSION_HOST})

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox, wherever it is."""
        if to in self._local_addresses and self._local is not None:
            self._local.send(to, message)
        elif not self._post(to, message):
            self._report(Undelivered(to, message))

    def _post(self, to: str, message: Message) -> bool:
        """Send a message to another process; False if nobody there has that address."""
        from akkordeon.engines.ray.serialization import serialize_message

        handle = None if to in self._local_addresses else self._pool.host_with(to)
        if handle is None:
            return False
        handle.enqueue.remote(serialize_message(to, message, self.wire_dtype))
        return True

    def now_s(self) -> float:
        """Seconds of this machine's monotonic clock; other machines have their own."""
        return time.monotonic()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done later, on a thread of its own."""
        self._timers.after(seconds, do)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait for reports; the hosts do the rest."""
        with self._reported:
            return self._reported.wait_for(condition, bounded(timeout_s))

    def loads(self) -> dict[str, Load]:
        """How busy each living actor is, where its host answers in time."""
        ray = require_ray()
        asked = [handle.loads.remote() for handle in list(self._pool.hosts.values())]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=LOADS_S) if asked else ([], [])
        found = dict(self._local.loads()) if self._local is not None else {}
        for ref in ready:
            with suppress(ray.exceptions.RayError):
                found.update(ray.get(ref, timeout=FETCH_S))
        return found

    def locations(self) -> dict[str, tuple[str, int]]:
        """Address of the node and number of the process of every actor in a host."""
        return self._pool.actor_locations()

    # ── what comes in ────────────────────────────────────────────────────────────────────────────────

    def _report(self, record: Any) -> None:
        with self._reported:
            self._on_report(record)
            self._reported.notify_all()
        if isinstance(record, SentinelEnded):
            gone = [record.address, reader_of(record.address)]
            self._local_addresses.difference_update(gone)
            self._pool.forget(gone)

    def _follow(self) -> None:
        """Take what the session host hands over, and ask all others for heartbeats. The one thread here."""
        over = self._over
        try:
            while not over.is_set():
                self._ask_hosts()
                self._hear()
                self._lose_the_silent()
        except Exception as error:  # the cluster is gone: nobody will answer any more
            self._lose_all(f"Ray does not answer ({explain(error)})")

    def _ask_hosts(self) -> None:
        """Ask each that owes no answer: the session host for what it has, the others for heartbeats."""
        for name, handle in list(self._pool.hosts.items()):
            if name == SESSION_HOST:
                self._heartbeats.ask(name, handle.collect.remote)
            else:
                self._heartbeats.ask(name, handle.heartbeat.remote, HEARTBEAT_S)

    def _hear(self) -> None:
        """Take the answers that have come, or wait a moment for one."""
        ray = require_ray()
        if not self._heartbeats.owed():
            self._over.wait(HEARTBEAT_S)
            return
        for name, answer in self._heartbeats.answers(HEARTBEAT_S):
            if not isinstance(answer, Lost):
                for to, serialized in answer or ():
                    self._take_in(to, serialized)
            elif not isinstance(answer.error, ray.exceptions.RayActorError):
                raise answer.error
            elif not self._over.is_set():
                self._lose(name, "its process died")
                self._replace_session_host()

    def _lose_the_silent(self) -> None:
        """A host that owes an answer for too long counts as lost: it is stopped, stuck or cut off."""
        for name in self._pool.hosts.keys() - self._pool.locations.keys():
            self._heartbeats.excuse(name)  # it comes up, and may take its time
        for name in self._heartbeats.silent(SILENT_S):
            self._heartbeats.drop(name)
            if (handle := self._pool.hosts.get(name)) is None:
                continue  # it was ended
            self._lose(name, f"its process has not answered for {SILENT_S:g} s")
            within(STOP_S, partial(self._end_host, name, handle))
            self._replace_session_host()

    def _look_after(self) -> None:
        """See that Ray's own processes are there, without which nothing goes on. On a thread of its own."""
        over, away_s = self._over, 0.0
        while not over.wait(CLUSTER_CHECK_S) and self._cluster is not None:
            node, head = self._cluster.node_answers(), self._cluster.head_answers()
            if over.is_set():
                return
            if not node:
                self._lose_all("Ray's process on this machine (raylet) has died")
                return
            away_s = 0.0 if head else away_s + CLUSTER_CHECK_S
            if away_s >= HEAD_S:
                self._pool.lost = f"the head of the Ray cluster has not answered for {HEAD_S:g} s"
                # The hosts are there: gates can leave their weights.
                self._report(ClusterLost(self._pool.lost))
                return

    def _take_in(self, to: str | None, serialized: Serialized) -> None:
        from akkordeon.engines.ray.serialization import deserialize

        try:
            thing = deserialize(serialized, writable=True)
        except Exception as error:
            thing = ActorFailed(to or SESSION_HOST, "a report that cannot be unpacked", error)
            to = None
        if to is None:
            self._report(thing)
        elif self._local is not None:
            self._local.send(to, thing)

    def _lose_all(self, why: str) -> None:
        self._pool.lost = why
        # Gates first: it is they that end a session.
        for name in sorted(self._pool.hosts, key=lambda name: name == SESSION_HOST):
            self._lose(name, why)

    def _lose(self, name: str, why: str) -> None:
        """A host is gone: say who was there."""
        self._moving = self._moving or name == SESSION_HOST
        (node, pid), gone = self._pool.remove(name)
        for address in gone:
            self._lost(ActorLost(address, f"{why} (number {pid} on {node})"), (node, pid))

    def _lost(self, record: ActorLost, location: tuple[str, int]) -> None:
        """An actor is lost with its process, which was there."""
        self._report(record)

    def _replace_session_host(self) -> None:
        """Have a session host again, if it was that which died: without one the session hears nothing."""
        if not self._moving or self._pool.lost:
            return
        for handle in list(self._pool.hosts.values()):
            handle.remove_listener.remote(self._key)
        self._key = uuid.uuid4().hex
        with suppress(ClusterError):
            self._pool.start_session_host()
            self._settle_session_host()
        with self._reported:
            self._moving = False
            self._reported.notify_all()
