"""The engine's part in the user's process: it makes hosts, ships actors to them, and hears of everything."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from akkordeon.core.actor import Actor, Spawn
from akkordeon.core.errors import ClusterError, RecipeError, SessionError, explain
from akkordeon.core.messages import Message
from akkordeon.core.reports import ActorFailed, ActorLost, ClusterLost, SentinelEnded, Undelivered
from akkordeon.engines.base import Engine, Load, ProcessState, bounded
from akkordeon.engines.ray.connection import Vitals, join, require_ray, within
from akkordeon.engines.ray.placement import Placement, host_of, is_replica, is_visitor, sum_of_resources

if TYPE_CHECKING:
    from akkordeon.engines.ray.hosts import Dispatcher, Routes
    from akkordeon.engines.ray.serialization import Parcel

__all__ = ["Ray"]

HOME = "home"

READY_S = 60.0
"""How long a host may take to come up; one that waits for resources never does."""

PULSE_S = 0.5
"""How often each host's pulse is felt."""

UNRECORDED = {"enable_task_events": False}
"""Ray's head need not keep an event for each message."""

STOP_S = 10.0
"""How long ``stop`` waits for the thread that follows the hosts, which may wait for one that is stuck."""

LOADS_S = 2.0
"""How long ``loads`` waits for the hosts."""

SILENT_S = 30.0
"""How long a host may owe a sign of life: then it counts as lost, though its process may be there still."""

ROUTES_S = 2.0
"""How long a sentinel's attaching waits for hosts to know the way to it; one that hangs learns it later."""

HEARTBEAT_S = 2.0
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
        wire_dtype: what float32 activations and gradients are narrowed to between hosts, such as
            ``torch.bfloat16``; None sends them as they are.
        workers: threads at work in each host; as the threads engine has it if not given, and one for a
            replica.

    Raises:
        RecipeError: another wire_dtype.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        placement: Placement = "spread",
        wire_dtype: torch.dtype | None = None,
        workers: int | None = None,
    ) -> None:
        if wire_dtype not in (None, torch.bfloat16, torch.float16):
            raise RecipeError(f"wire_dtype is torch.bfloat16 or torch.float16, got {wire_dtype!r}")
        self.address = address
        self.placement = placement
        self.wire_dtype = wire_dtype
        self.workers = workers
        self._reported = threading.Condition(threading.RLock())
        self._key = uuid.uuid4().hex  # of the home, for those that report to it; a new home has a new one
        self._lock = threading.Lock()  # guards hosts, routes and what is awaited
        self._hosts: dict[str, Any] = {}
        self._where: dict[str, tuple[str, int]] = {}
        self._places: dict[str, str] = {}  # name of the host, by address of the actor
        self._leaving: set[str] = set()  # hosts to end when the last of their actors has gone
        self._local: Dispatcher | None = None  # holds what cannot be shipped
        self._local_addresses: set[str] = set()
        self._awaited: dict[Any, str] = {}  # name of the host, by what it will answer
        self._over = threading.Event()
        self._moving = False  # whether the home died and another is on its way
        self._vitals: Vitals | None = None
        self._dead = ""  # why there is no cluster any more, if so
        self._thread: threading.Thread | None = None
        self._on_report: Callable[[Any], None] = lambda record: None
        self._process: ProcessState | None = None
        self._leave: Callable[[], None] = lambda: None
        self._seed = 0

    # ── beginning and ending ─────────────────────────────────────────────────────────────────────────

    def start(self, on_report: Callable[[Any], None], seed: int) -> None:
        """Join or start the cluster, and make the home.

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
        self._on_report, self._seed = on_report, seed
        self._over.clear()
        self._dead = ""
        try:
            self._vitals = Vitals()
            self._hosts[HOME] = self._new_host(HOME, {})  # it comes up together with the first of the others
        except BaseException:
            self.stop()
            raise
        self._thread = threading.Thread(target=self._follow, name="akkordeon-ray", daemon=True)
        self._thread.start()
        threading.Thread(target=self._look_after, name="akkordeon-ray-vitals", daemon=True).start()

    def stop(self) -> None:
        """End the hosts, and the cluster if it was started here."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_S)
        self._thread = None
        within(STOP_S, self._end_hosts)
        if self._local is not None:
            self._local.stop()
            self._local = None
        for gathered in (self._hosts, self._where, self._places, self._awaited, self._local_addresses):
            gathered.clear()
        if self._process is not None:
            if self._dead:
                within(STOP_S, self._leave)  # Ray waits for what is no more
            else:
                self._leave()
            self._process.restore()
            self._process = None

    def _end_hosts(self) -> None:
        for name, handle in list(self._hosts.items()):
            self._end_host(name, handle)

    # ── hosts ────────────────────────────────────────────────────────────────────────────────────────

    def _make_hosts(self, needed: Mapping[str, Mapping[str, float]]) -> None:
        """Make hosts, all at once, by name and with what they need; those that are there already stay."""
        ray = require_ray()
        with self._lock:
            there = dict(self._hosts)
        made: dict[str, Any] = {}
        try:
            for name, needs in needed.items():
                if name not in there and name not in made:
                    made[name] = self._new_host(name, needs)
            new = made | {name: handle for name, handle in there.items() if name not in self._where}
            asked = {name: handle.whereabouts.remote() for name, handle in new.items()}
            found = dict(zip(asked, self._answers(asked.values(), READY_S), strict=True))
        except BaseException as error:
            for name, handle in made.items():
                self._end_host(name, handle)
            if not isinstance(error, ray.exceptions.GetTimeoutError | ray.exceptions.RayActorError):
                raise
            wishes = {name: dict(needs) for name, needs in needed.items() if needs} or "nothing special"
            came = "died" if isinstance(error, ray.exceptions.RayActorError) else f"took {READY_S:g} s"
            raise ClusterError(
                f"the cluster did not bring up {', '.join(new)}: a process {came}; what was asked for: "
                f"{wishes}; what there is: {ray.available_resources()}"
            ) from error
        with self._lock:
            self._where.update(found)
            self._hosts.update(made)

    def _new_host(self, name: str, needs: Mapping[str, float]) -> Any:
        """Ask Ray for a process."""
        from akkordeon.engines.ray.hosts import Home, Host

        try:
            make = require_ray().remote(**self._options(name, needs))(Home if name == HOME else Host)
        except ValueError as error:
            raise RecipeError(f"{name} cannot have the resources {dict(needs)}: {error}") from error
        seed = (self._seed + zlib.crc32(name.encode())) % 2**63
        # The gates of a replica mostly wait for each other: a second worker would take turns with the first.
        workers = self.workers or (1 if is_replica(name) else None)
        return make.remote(seed, workers, self.wire_dtype, [os.path.abspath(folder) for folder in sys.path])

    def _options(self, name: str, needs: Mapping[str, float]) -> dict[str, Any]:
        """What Ray is to know of a host: what it needs, and where it may be."""
        ray = require_ray()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if name != HOME:
            return {**UNRECORDED, "num_cpus": 0, **_ray_options(needs), "scheduling_strategy": "SPREAD"}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        desk = {"concurrency_groups": {"desk": 1}}
        return {**UNRECORDED, "num_cpus": 0, "scheduling_strategy": here, **desk}

    def _end_host(self, name: str, handle: Any) -> None:
        """End a process."""
        require_ray().kill(handle)

    # ── actors ───────────────────────────────────────────────────────────────────────────────────────

    def spawn(
        self,
        address: str,
        make: Callable[[], Actor],
        resources: Mapping[str, float] | None = None,
        beside: str | None = None,
    ) -> None:
        """Make an actor: a sentinel or its reader at home or beside whom it serves, any other in its host.

        Raises:
            RecipeError: an actor that does not belong here cannot travel.
            ClusterError: the process that it belongs into has died.
        """
        if not is_visitor(address):
            self.spawn_all([Spawn(address, make, resources)])
            return
        parcel = self._shipped(address, make)
        host = HOME if parcel is None or beside is None else self._places.get(beside, "")
        if host == HOME:
            self.wait_until(lambda: not self._moving, READY_S)
        if host not in self._hosts:
            raise ClusterError(f"the process that {address} belongs into has died")
        if parcel is None:
            self._spawn_here(address, make)
        else:
            self._ship({address: host}, {address: parcel})
        self._tell_routes({address: host})

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """Make the actors of a network, their hosts at once."""
        spawns = list(spawns)
        places = {spawn.address: self._place(spawn.address) for spawn in spawns}
        self._make_hosts(
            {
                host: sum_of_resources(s.resources for s in spawns if places[s.address] == host)
                for host in places.values()
            }
        )
        parcels: dict[str, Parcel] = {}
        for spawn in spawns:
            parcel = self._shipped(spawn.address, spawn.make)
            if parcel is None:
                raise RecipeError(f"{spawn.address} cannot travel to its host: {self._why_not}")
            parcels[spawn.address] = parcel
        self._ship(places, parcels)
        self._tell_routes(places)

    def retire(self, addresses: Iterable[str]) -> None:
        """End the hosts that have nobody else, or as soon as they have nobody."""
        gone = set(addresses)
        with self._lock:
            self._leaving |= {self._places.pop(address) for address in gone & self._places.keys()} - {HOME}
            others = list(self._hosts.values())
        for handle in others:
            handle.unroute.remote(gone)
        self._end_the_leaving()

    def _end_the_leaving(self) -> None:
        with self._lock:
            empty = self._leaving - set(self._places.values())
            self._leaving -= empty
            ended = {name: self._hosts.pop(name) for name in empty & self._hosts.keys()}
        for name, handle in ended.items():
            self._end_host(name, handle)

    def _place(self, address: str) -> str:
        """The name of the host that an actor belongs to."""
        return host_of(address, self.placement)

    _why_not = ""

    def _shipped(self, address: str, make: Callable[[], Actor]) -> Parcel | None:
        """An actor's recipe as a parcel; None if it cannot travel."""
        from akkordeon.engines.ray.serialization import pack, ship_by_value

        ship_by_value()
        try:
            return pack(make)
        except TypeError as error:
            self._why_not = str(error)
            return None

    def _ship(self, places: Mapping[str, str], parcels: Mapping[str, Parcel]) -> None:
        """Have the hosts make the actors; what making one raises, this raises."""
        from akkordeon.engines.ray.serialization import unpack

        ray = require_ray()
        with self._lock:
            self._places.update(places)
        made = [
            self._hosts[places[address]].spawn.remote(address, parcel) for address, parcel in parcels.items()
        ]
        moving = ", ".join(parcels)
        try:
            outcomes = self._answers(made, READY_S)
        except ray.exceptions.RayActorError as error:
            raise ClusterError(f"a host died while {moving} moved in: {error}") from error
        except ray.exceptions.GetTimeoutError as error:
            raise ClusterError(f"no host took {moving} in within {READY_S:g} s") from error
        for outcome in outcomes:
            if outcome is not None:
                raise _as_told(unpack(outcome), moving)

    def _spawn_here(self, address: str, make: Callable[[], Actor]) -> None:
        """Make an actor in this process, which the others reach through the home."""
        if self._local is None:
            from akkordeon.engines.ray.hosts import Dispatcher

            self._local = Dispatcher(self._post, self.workers)
            self._local._reported = self._reported  # one lock: each side may report while the other does
            self._local.start(self._report, self._seed)
        self._local.spawn(address, make)
        with self._lock:
            self._local_addresses.add(address)
            self._places[address] = HOME

    def _tell_routes(self, places: Mapping[str, str]) -> None:
        """Tell every host where these actors are, and new ones where all are; wait until they know."""
        ray = require_ray()
        with self._lock:
            hosts, known = dict(self._hosts), dict(self._places)
        told = []
        for name, handle in hosts.items():
            news = known if name in places.values() else places
            routes: Routes = {a: hosts[host] for a, host in news.items() if host != name and host in hosts}
            if name == HOME:
                routes.update(dict.fromkeys(self._local_addresses & news.keys()))
            elif HOME in hosts:
                told.append(handle.listen.remote(self._key, hosts[HOME]))
            told.append(handle.route.remote(routes))
        with suppress(ray.exceptions.RayError):  # whoever feels their pulse will say so
            self._answers(told, ROUTES_S)

    def _answers(self, asked: Iterable[Any], timeout_s: float) -> list[Any]:
        """What hosts answer, all of them; every wait for Ray that a user waits for has this bound.

        Raises:
            ClusterError: the cluster is gone.
            ray.exceptions.GetTimeoutError: not all answers have come by then.
            ray.exceptions.RayActorError: somebody who was asked has died.
        """
        ray = require_ray()
        refs, deadline_s = list(asked), time.monotonic() + timeout_s
        left = refs
        while left:
            if self._dead:
                raise ClusterError(self._dead)
            if time.monotonic() >= deadline_s:
                raise ray.exceptions.GetTimeoutError(f"no answer within {timeout_s:g} s")
            patience_s = min(PULSE_S, max(0.0, deadline_s - time.monotonic()))
            _, left = ray.wait(left, num_returns=len(left), timeout=patience_s)
        return list(ray.get(refs))

    def _settle_home(self) -> None:
        """See that the home, perhaps a new one, and the hosts know each other."""
        self._make_hosts({})
        self._tell_routes({"": HOME})

    def _forget(self, address: str) -> None:
        """A sentinel has ended: nobody needs to know the way to it."""
        gone = [address, address.replace("sentinel/", "reader/", 1)]
        with self._lock:
            for each in gone:
                self._places.pop(each, None)
                self._local_addresses.discard(each)
            hosts = [handle for name, handle in self._hosts.items() if name != HOME]
        for handle in hosts:
            handle.unroute.remote(gone)
        self._end_the_leaving()

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox, wherever it is."""
        if to in self._local_addresses and self._local is not None:
            self._local.send(to, message)
        elif not self._post(to, message):
            self._report(Undelivered(to, message))

    def _post(self, to: str, message: Message) -> bool:
        """Send a message to another process; False if nobody there has that address."""
        from akkordeon.engines.ray.serialization import seal

        handle = None if to in self._local_addresses else self._hosts.get(self._places.get(to, ""))
        if handle is None:
            return False
        handle.enqueue.remote(seal(to, message, self.wire_dtype))
        return True

    def now_s(self) -> float:
        """Seconds of this machine's monotonic clock; other machines have their own."""
        return time.monotonic()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait for reports; the hosts do the rest."""
        with self._reported:
            return self._reported.wait_for(condition, bounded(timeout_s))

    def loads(self) -> dict[str, Load]:
        """How busy each living actor is, where its host answers in time."""
        ray = require_ray()
        asked = [handle.loads.remote() for handle in list(self._hosts.values())]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=LOADS_S) if asked else ([], [])
        found = dict(self._local.loads()) if self._local is not None else {}
        for ref in ready:
            try:
                found.update(ray.get(ref))
            except ray.exceptions.RayActorError:
                continue
        return found

    def whereabouts(self) -> dict[str, tuple[str, int]]:
        """Address of the node and number of the process of every actor in a host."""
        with self._lock:
            return {a: self._where[host] for a, host in self._places.items() if host in self._where}

    # ── what comes in ────────────────────────────────────────────────────────────────────────────────

    def _report(self, record: Any) -> None:
        with self._reported:
            self._on_report(record)
            self._reported.notify_all()
        if isinstance(record, SentinelEnded):
            self._forget(record.address)

    def _follow(self) -> None:
        """Take what the home hands over, and feel the pulse of the hosts. The engine's one thread here."""
        beaten_s: dict[str, float] = {}
        asked_s: dict[str, float] = {}
        try:
            while not self._over.is_set():
                self._ask_hosts(beaten_s, asked_s)
                self._hear(beaten_s)
                self._lose_the_silent(asked_s)
        except Exception as error:  # the cluster is gone: nobody will answer any more
            self._lose_all(f"Ray does not answer ({explain(error)})")

    def _hear(self, beaten_s: dict[str, float]) -> None:
        """Take the answers that have come, or wait a moment for one."""
        ray = require_ray()
        if not self._awaited:
            self._over.wait(PULSE_S)
            return
        ready, _ = ray.wait(list(self._awaited), num_returns=1, timeout=PULSE_S)
        for ref in ready:
            name = self._awaited.pop(ref)
            try:
                answer = ray.get(ref)
            except ray.exceptions.ActorUnavailableError:
                continue  # it may come back; if it does not, Ray says that it died
            except ray.exceptions.RayActorError:
                if not self._over.is_set():
                    self._lose(name, "its process died")
                    self._replace_home()
                continue
            beaten_s[name] = time.monotonic()
            for to, parcel in answer or ():
                self._take_in(to, parcel)

    def _ask_hosts(self, beaten_s: Mapping[str, float], asked_s: dict[str, float]) -> None:
        """Ask every host that owes no answer: the home for what it has, the others for a sign of life."""
        with self._lock:
            hosts = dict(self._hosts)
        for name, handle in hosts.items():
            if name in self._awaited.values():
                continue
            if name == HOME:
                self._awaited[handle.collect.remote()] = name
            elif time.monotonic() - beaten_s.get(name, 0.0) >= PULSE_S:
                self._awaited[handle.pulse.remote()] = name
            else:
                continue
            asked_s[name] = time.monotonic()

    def _lose_the_silent(self, asked_s: dict[str, float]) -> None:
        """A host that owes an answer for too long counts as lost: it is stopped, stuck or cut off."""
        now_s = time.monotonic()
        for ref, name in list(self._awaited.items()):
            if name not in self._where:
                asked_s[name] = now_s  # one that comes up may take its time
            elif now_s - asked_s[name] > SILENT_S:
                del self._awaited[ref]
                handle = self._hosts[name]
                self._lose(name, f"its process has not answered for {SILENT_S:g} s")
                within(STOP_S, partial(self._end_host, name, handle))
                self._replace_home()

    def _look_after(self) -> None:
        """See that Ray's own processes are there, without which nothing goes on. On a thread of its own."""
        away_s = 0.0
        while not self._over.wait(HEARTBEAT_S) and self._vitals is not None:
            if not self._vitals.node_answers():
                self._lose_all("Ray's process on this machine (raylet) has died")
                return
            away_s = 0.0 if self._vitals.head_answers() else away_s + HEARTBEAT_S
            if away_s >= HEAD_S:
                self._dead = f"the head of the Ray cluster has not answered for {HEAD_S:g} s"
                self._report(ClusterLost(self._dead))  # the hosts are there: gates can leave their weights
                return

    def _lose_all(self, why: str) -> None:
        self._dead = why
        for name in sorted(self._hosts, key=lambda name: name == HOME):  # it is gates that end a session
            self._lose(name, why)

    def _take_in(self, to: str | None, parcel: Parcel) -> None:
        from akkordeon.engines.ray.serialization import unpack

        try:
            thing = unpack(parcel, writable=True)
        except Exception as error:
            thing = ActorFailed(to or HOME, "a report that cannot be unpacked", error)
            to = None
        if to is None:
            self._report(thing)
        elif self._local is not None:
            self._local.send(to, thing)

    def _lose(self, name: str, why: str) -> None:
        """A host is gone: say who was there."""
        self._moving = self._moving or name == HOME
        with self._lock:
            self._hosts.pop(name, None)
            node, pid = self._where.pop(name, ("?", 0))
            gone = [address for address, host in self._places.items() if host == name]
            for address in gone:
                del self._places[address]
        for address in gone:
            self._report(ActorLost(address, f"{why} (number {pid} on {node})"))

    def _replace_home(self) -> None:
        """Have a home again, if it was the home that died: without one the session hears nothing."""
        if not self._moving or self._dead:
            return
        for handle in self._hosts.values():
            handle.deafen.remote(self._key)
        self._key = uuid.uuid4().hex
        with suppress(ClusterError):
            self._hosts[HOME] = self._new_host(HOME, {})
            self._settle_home()
        with self._reported:
            self._moving = False
            self._reported.notify_all()


def _as_told(error: BaseException, moving: str) -> BaseException:
    """What a host raised when it made an actor; what is missing there is not missing here."""
    if not isinstance(error, ModuleNotFoundError):
        return error
    told = RecipeError(
        f"{moving} cannot be made in another process: {error}. What a gate or a sentinel imports must be "
        "installed on every machine, or lie in a folder that is there under the same name"
    )
    told.__cause__ = error
    return told


def _ray_options(needs: Mapping[str, float]) -> dict[str, Any]:
    """Resources as Ray's options have them: CPUs, GPUs and memory by name, all others in a dict."""
    own = {"num_cpus", "num_gpus", "memory"}
    options: dict[str, Any] = {name: amount for name, amount in needs.items() if name in own}
    custom = {name: amount for name, amount in needs.items() if name not in own}
    return options | ({"resources": custom} if custom else {})
