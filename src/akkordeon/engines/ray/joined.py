"""The engine of a session that joined a detached network, and joins it again when it was away."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from akkordeon.core.actor import Spawn
from akkordeon.core.addresses import sentinel_address
from akkordeon.core.errors import ClusterError, RecipeError
from akkordeon.core.messages import Attach, Message
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.reports import ActorFailed, ActorLost, ClusterLost
from akkordeon.core.surgery.reports import RowChanged
from akkordeon.engines.ray.cluster.connection import is_connected, join
from akkordeon.engines.ray.cluster.heartbeats import SILENT_S
from akkordeon.engines.ray.detached import answer, info_of, raise_refusal, recipe_of, registrar_of, weights_of
from akkordeon.engines.ray.engine import Ray
from akkordeon.engines.ray.host_pool import READY_S, SESSION_HOST, HostPool
from akkordeon.engines.ray.network_info import NetworkInfo, NetworkStatus, SentinelEntry
from akkordeon.engines.ray.serialization import deserialize, pickle_by_value, serialize

__all__ = ["JoinedEngine"]

RETRY_S = 0.5
"""How often it is seen whether a network, or a gate, that went away is there again."""

AWAY_S = 30.0
"""How long the registrar may owe an answer, or take a lost gate for alive, before that is lost for good."""

NEW_MAX = 256
"""Sentinels of which it is known when they came."""


class JoinedEngine(Ray):
    """The engine of a session that joined a network: the gates are there, and stay when it leaves.

    Args:
        address: HOST:PORT of the cluster; this machine belongs to it.
        name: of the network.

    Attributes:
        row: addresses of the gates, head first, as the session knows them.
        edition: how often the row was changed by then.

    Raises:
        ClusterError: there is no cluster, it does not let us in, or it has no such network.
    """

    def __init__(self, address: str, name: str) -> None:
        self.target = f"{address}/{name}"
        self._name = name
        self._undo: Callable[[], None] = lambda: None
        self._came: deque[tuple[float, str]] = deque(maxlen=NEW_MAX)  # when, and the address
        self._registrar: Any = None
        self._joins = not is_connected()  # else whoever connected this process also takes it away
        self._info, self.network = self._find(address)
        self.row, self.edition = self._info.row, self._info.edition
        self.seed = self._info.seed
        super().__init__(wire_dtype=self._info.wire_dtype)  # on the cluster that was just joined

    def _find(self, address: str) -> tuple[NetworkInfo, Any]:
        """Join the cluster and find the network; the way in, and its recipe."""
        self._undo = join(address)
        try:
            self._registrar = registrar_of(address, self._name)
            failure = answer(self._registrar.failure.remote())
            if failure is not None:
                raise ClusterError(f"the network {self._name!r} works no more: {failure}")
            info = info_of(self._registrar, self._name)
            return info, recipe_of(info, self._name)
        except BaseException:
            self._leave_cluster()
            raise

    def come_again(self, timeout_s: float, given_up: threading.Event) -> None:
        """Leave a network that works no more, and join the one of its name once there is one.

        Args:
            timeout_s: how long to look for it.
            given_up: ends that early.

        Raises:
            ClusterError: it did not come, and why; or it is another.
        """
        deadline_s = time.monotonic() + timeout_s
        self.stop()
        while True:
            try:
                self._come()
                return
            except ClusterError as error:
                self.stop()
                if time.monotonic() > deadline_s or given_up.wait(RETRY_S):
                    raise ClusterError(f"{self.target} was away for {timeout_s:g} s: {error}") from error

    def _come(self) -> None:
        if self._joins and is_connected():
            raise ClusterError("Ray is still leaving what was there before")
        address, _, _ = self.target.partition("/")
        self._info, network = self._find(address)
        if network.row() != self.network.row():
            gates = f"{len(network.gates)} gates where there were {len(self.network.gates)}"
            raise ClusterError(f"the network that is there now is another, of {gates}")
        self.row, self.edition = self._info.row, self._info.edition
        self.start(self._on_report, self.seed)
        self.spawn_all(())
        if self._pool.lost or any(gate not in self._pool.places for gate in network.row()):
            raise ClusterError(f"it was lost again{self._pool.lost and ': '}{self._pool.lost}")

    def report(self, record: Any) -> None:
        """Have the session hear of something."""
        self._report(record)

    def _new_pool(self, seed: int) -> HostPool:
        pool = super()._new_pool(seed)
        pool.adopt(self._info.hosts, self._info.locations, self._info.places)
        return pool

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """The gates are there; see that they and the session host know each other."""
        self._settle_session_host()

    def _settle_session_host(self) -> None:
        super()._settle_session_host()
        session_host = self._pool.hosts[SESSION_HOST]
        answer(session_host.set_registrar.remote(self._registrar), READY_S)
        answer(self._registrar.register_session.remote(self._key, session_host, self.edition))

    def register_sentinel(self, name: str | None, role: str, answers: bool) -> tuple[str, int]:
        """A name that no other sentinel of the network has, and its number.

        Args:
            name: the one wanted; None takes one after the role.
            role: what the sentinel is for.
            answers: whether it is only a question, of whose end nobody needs to hear.

        Raises:
            NameTakenError: another has it.
        """
        session_host, location = self._pool.hosts[SESSION_HOST], self._pool.locations[SESSION_HOST]
        what = name, role, answers, self._key, session_host, location
        while (given := answer(self._registrar.register_sentinel.remote(*what, self.row))) is None:
            if self._over.wait(RETRY_S):
                raise ClusterError(f"{self.target} was left while its row was being changed")
        if isinstance(given[0], bytes):
            raise_refusal(given)
        entry = SentinelEntry(given[0], role, sentinel_address(*given), *location, answers)
        session_host.add_sentinel.remote(entry)
        self._came.append((self.now_s(), entry.address))
        return given[0], given[1]

    def send(self, to: str, message: Message) -> None:
        """Put a message into a mailbox; the network hears of a sentinel that begins."""
        super().send(to, message)
        if isinstance(message, Attach):
            self._pool.hosts[SESSION_HOST].begin_sentinel.remote(to)

    # ── gates that come and go ───────────────────────────────────────────────────────────────────────

    def rearrange(self, operation: Callable[[Any], Any]) -> Any:
        """Have the registrar carry out a change of the row; what comes of it.

        Args:
            operation: is called there with a :class:`akkordeon.engines.ray.surgery.row_surgery.RowSurgery`.

        Raises:
            RecipeError: a gate cannot travel.
            AkkordeonError: what the operation raised.
            ClusterError: the registrar was lost meanwhile; the row is the one before, or the new one.
        """
        pickle_by_value()
        try:
            sent = serialize(operation)
        except TypeError as error:
            raise RecipeError(f"the gate cannot travel: {error}") from error
        folders = tuple(os.path.abspath(folder) for folder in sys.path)
        outcome = deserialize(answer(self._registrar.rearrange.remote(self._key, sent, folders), None), True)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _become(self, info: NetworkInfo) -> None:
        """The network has another row: have the session know, and make sentinels for it from then on."""
        before = self._info
        if info.edition <= before.edition:
            return
        try:
            self.network = recipe_of(info, self._name)
        except ClusterError as error:
            super()._report(ClusterLost(str(error)))
            return
        self._info = info
        self._pool.adopt(info.hosts, info.locations, info.places)
        left = tuple(gate for gate in before.row if gate not in info.places)
        self._pool.retire(left)
        super()._report(RowChanged(info.row, tuple(g for g in info.row if g not in before.places), left))
        with self._reported:
            self.row, self.edition = info.row, info.edition
            self._reported.notify_all()

    # ── gates that come back ─────────────────────────────────────────────────────────────────────────

    def _comes_back(self, address: str) -> bool:
        return self._info.recovery is not None and address in self._info.places and not self._pool.lost

    def _report(self, record: Any) -> None:
        """The registrar tells of another row, and when a gate that raised was one too many."""
        if isinstance(record, NetworkInfo):
            self._become(record)
        elif not (isinstance(record, ActorFailed) and self._comes_back(record.address)):
            super()._report(record)

    def _lost(self, record: ActorLost, location: tuple[str, int]) -> None:
        """Look for a gate where the registrar has it made anew; it tells sentinels itself."""
        if not self._comes_back(record.address):
            super()._lost(record, location)
            return
        find = partial(self._find_again, record.address, location, self._over)
        self._timers.meanwhile(find, partial(self._unless_found, record))

    def _find_again(self, gate: str, before: tuple[str, int], over: threading.Event) -> None:
        """Wait until the registrar has had it made anew, and know where it is; raise if it never will be."""
        lost_s, host = self.now_s(), self._info.places[gate]
        answered_s = lost_s
        while not over.wait(RETRY_S) and gate in self._info.places:
            with suppress(ClusterError):  # the registrar may have been killed, too
                there = answer(self._registrar.there.remote())
                if there is None:
                    break
                hosts, locations = there
                if host in hosts and locations[host] != before:
                    self._pool.adopt({host: hosts[host]}, {host: locations[host]}, {gate: host})
                    self._tell_routes({gate: host})
                    self._tell_new(gate, lost_s)
                    return
                if host not in hosts:
                    answered_s = self.now_s()
            if self.now_s() - answered_s > AWAY_S:
                break
        if gate not in self._info.places:
            return  # it left the row
        raise ClusterError(f"{gate} of {self._name!r} does not come back")

    def _unless_found(self, record: ActorLost, failure: Exception | None) -> None:
        if failure is not None:
            self._report(record)

    def _tell_new(self, gate: str, lost_s: float) -> None:
        """Sentinels that came when it was not known here that a gate was lost have sent it something."""
        for came_s, address in list(self._came):
            if came_s > lost_s - SILENT_S:
                self.send(address, Restarted(gate))

    def unregister_sentinel(self, address: str) -> None:
        """A sentinel that was registered did not come."""
        self._registrar.unregister_sentinel.remote(address)

    def detach(self, name: str, drop: bool) -> None:
        """Have a sentinel of another session end.

        Raises:
            NoSuchSentinelError: none of that name is at work.
        """
        refusal = answer(self._registrar.detach.remote(name, drop))
        if refusal is not None:
            raise_refusal(refusal)

    def network_status(self) -> NetworkStatus:
        """How the network is, with the sentinels of all its sessions.

        Raises:
            ClusterError: the registrar does not answer.
        """
        found: NetworkStatus = answer(self._registrar.status.remote())
        return found

    def last_states(self, timeout_s: float) -> Any:
        """The weights that the gates of a network that has failed had last.

        Raises:
            ClusterError: they are not known.
        """
        return weights_of(self._registrar, self._name, timeout_s).states

    def _end_host(self, name: str, handle: Any) -> None:
        if name == SESSION_HOST:
            with suppress(ClusterError):  # the network may have ended before us
                answer(self._registrar.unregister_session.remote(self._key))
        super()._end_host(name, handle)

    def stop(self) -> None:
        """Leave; the network goes on."""
        super().stop()
        self._leave_cluster()

    def _leave_cluster(self) -> None:
        undo, self._undo = self._undo, lambda: None
        undo()
