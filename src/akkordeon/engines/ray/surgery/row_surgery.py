"""What it takes to change the row of a network that runs on its own: its gates, sentinels and sessions.

A session brings what is to be done (:mod:`akkordeon.session.surgery.on_network`), and may go away or be lost
meanwhile. This is in the registrar's process, so the row is not left half changed::

    a gate is made ─▶ Pause ─▶ all sentinels ─▶ the recipe is another ─▶ Rewire ─▶ gates
        ─▶ sessions hear of it ─▶ Resume ─▶ all sentinels
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import (
    ClusterError,
    RecipeError,
    SessionError,
    WaitTimeoutError,
    explain,
)
from akkordeon.core.messages import Message
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.surgery.messages import Rewire
from akkordeon.core.surgery.reports import Rewired, RowChanged
from akkordeon.engines.ray.cluster.waits import answered, end_actor
from akkordeon.engines.ray.members import Members
from akkordeon.engines.ray.network_info import NetworkInfo, with_row
from akkordeon.engines.ray.placement import host_of
from akkordeon.engines.ray.restarts import RestartingEngine
from akkordeon.engines.ray.serialization import Serialized, deserialize, serialize, serialize_message
from akkordeon.engines.ray.surgery.network_pauses import NetworkPauses

__all__ = ["RowSurgery"]

LOOK_S = 0.1
"""How often somebody who waits looks, besides when something is reported."""

REWIRE_S = 60.0
"""How long the gates may take to know their places; one of them may be made anew meanwhile."""

AGAIN_S = 1.0
"""How often a registrar that was made anew tells the gates their places, until they have answered."""

LINGER_S = 10.0
"""How long the process of a gate that left stays, until all sessions know that it is no part of the row."""


class RowSurgery:
    """Changes of the row, one after the other. Reports may be heard by any thread.

    Args:
        members: the sessions and their sentinels.
        engine: makes gates.
        decides: has them made anew; None where they do not come back.
        info: gives the way in, as it is now.
        update: changes it, and gives it as it is then.
        send: carries a message to a gate of the row, or to a sentinel.
        failure: why the network works no more, if so.
        changed: is told the row when it is another.

    Attributes:
        pauses: says who may begin.
        recovery: as ``decides``.
    """

    def __init__(
        self,
        members: Members,
        engine: RestartingEngine,
        decides: Any,
        info: Callable[[], NetworkInfo | None],
        update: Callable[[Callable[[NetworkInfo], NetworkInfo]], NetworkInfo],
        send: Callable[[str, Message], None],
        failure: Callable[[], str | None],
        changed: Callable[[RowChanged], None],
    ) -> None:
        self.pauses = NetworkPauses(members, send)
        self.recovery = decides
        self._members = members
        self._engine = engine
        self._info = info
        self._update = update
        self._send = send
        self._failure = failure
        self._tell_changed = changed
        self._heard = threading.Condition()
        self._hear: Callable[[Any], None] | None = None
        self._asker = ""
        self._apart: dict[str, Any] = {}  # hosts of gates that are not in the row yet, or not any more
        self._edition = 0  # when the change under way began
        self._one = threading.Lock()  # at a time

    def do(self, asker: str, operation: Serialized, folders: Sequence[str]) -> Serialized:
        """Carry out what a session brings; what comes of it, or the error.

        Args:
            asker: the key of the session.
            operation: is called with this.
            folders: where the session finds modules.
        """
        sys.path.extend(folder for folder in folders if folder not in sys.path)
        with self._one:
            try:
                self._asker, self._apart, self._edition = asker, {}, self.edition
                return serialize(_read(operation)(self))
            except Exception as error:  # what makes a gate is the user's, and may raise anything
                return serialize(error)
            finally:
                self._hear = None

    def begin(self, hear: Callable[[Any], None]) -> None:
        """Have somebody hear what gates and sentinels report of changes."""
        self._hear = hear

    def hear(self, record: Any) -> None:
        """Take note of a report."""
        with self._heard:
            if self._hear is not None:
                self._hear(record)
            self._heard.notify_all()

    # ── what there is ────────────────────────────────────────────────────────────────────────────────

    @property
    def _now(self) -> NetworkInfo:
        info = self._info()
        if info is None:
            raise ClusterError("the network has ended")
        return info

    @property
    def network(self) -> Any:
        """The recipe."""
        return deserialize(self._now.recipe, writable=True)

    @property
    def seed(self) -> int:
        """Of the network."""
        return self._now.seed

    @property
    def past(self) -> tuple[str, ...]:
        """Addresses of all gates that there ever were."""
        return self._now.past

    @property
    def edition(self) -> int:
        """How often the row was changed."""
        return self._now.edition

    # ── gates ────────────────────────────────────────────────────────────────────────────────────────

    def tell_of(self, sentinel: str, session_host: Any) -> None:
        """A sentinel is about to begin."""
        self._engine.tell_of(sentinel, session_host)

    def check_may_wait(self) -> None:
        """Nobody waits for this thread."""

    def spawn_all(self, spawns: Iterable[Spawn]) -> None:
        """Make gates, to which nobody talks yet."""
        for spawn in spawns:
            self._update(partial(_known, address=spawn.address))
            self._engine.bring(spawn)
            self._apart[spawn.address] = self._host(spawn.address)

    def _host(self, address: str) -> Any:
        return self._now.hosts.get(host_of(address, self._now.placement))

    def retire(self, addresses: Iterable[str]) -> None:
        """Gates have been told to close: their processes end, if they have no others."""
        gone = set(addresses)
        left = {address: self._apart.pop(address, None) for address in gone}
        kept = self._update(partial(_without_empty, gone=gone))
        for host in (*kept.hosts.values(), *self._members.hosts().values()):
            host.remove_routes.remote(gone)
        for handle in left.values():
            if handle is not None and handle not in kept.hosts.values():
                self._engine.after(LINGER_S, partial(end_actor, ray, handle))

    def send(self, to: str, message: Message) -> None:
        """Carry a message to a gate, also to one that is no part of the row."""
        host = self._apart.get(to)
        if host is None:
            self._send(to, message)
        else:
            host.enqueue.remote(serialize_message(to, message))

    # ── the row ──────────────────────────────────────────────────────────────────────────────────────

    def become(self, network: Any) -> None:
        """The row is that of another recipe: whoever is asked, or made anew, says so from now on."""
        before, row = self._now, network.row()
        self._apart = {address: self._host(address) for address in before.row if address not in row}
        info = self._update(partial(with_row, row=row, recipe=serialize(network)))
        me, known = ray.get_runtime_context().current_actor, ray.put(info)
        answered(ray, (host.set_registrar.remote(me, known) for host in info.hosts.values()), None)

    def begin_pause(self) -> None:
        """Have no sentinel begin anything new."""
        self.pauses.begin_pause()

    def at_rest(self, address: str) -> None:
        """A sentinel has nothing under way."""
        self.pauses.at_rest(address)

    def is_paused(self) -> bool:
        """Whether nothing is under way."""
        return self.pauses.is_paused()

    def end(self) -> None:
        """Have all go on; sessions hear of another row before their sentinels do."""
        info = self._info()
        if info is None:
            return
        if info.edition != self._edition:
            self._members.report(info)
        self.pauses.end(info.row)

    def tell(self, record: RowChanged) -> None:
        """The row was changed, and all go on."""
        self._tell_changed(record)

    def wait(self, condition: Callable[[], bool], timeout: float | None, what: str, *, drain: bool) -> None:
        """Wait for a condition, or raise ``what`` if it does not come.

        Raises:
            WaitTimeoutError: it has not come in time.
            ClusterError: it will not come.
            SessionError: whoever asked is gone.
        """
        bound_s = REWIRE_S if self.pauses.is_rewiring else timeout
        deadline_s = None if bound_s is None else time.monotonic() + bound_s
        with self._heard:
            while not condition():
                if (why := self._failure()) is not None:
                    raise ClusterError(f"{what}: {why}")
                if deadline_s is not None and time.monotonic() > deadline_s:
                    raise WaitTimeoutError(f"{what} after {bound_s:g} s")
                if not self.pauses.is_rewiring and self._asker not in self._members.hosts():
                    raise SessionError(f"{what}, and whoever asked for it is gone")
                self._heard.wait(LOOK_S)

    def settle(self) -> None:
        """Have all know the row and go on: the registrar was killed, perhaps in the middle of a change."""
        with self._one:
            info, told = self._now, set[str]()
            self.pauses.is_rewiring = True
            self.begin(lambda record: told.add(record.address) if isinstance(record, Rewired) else None)
            is_told, deadline_s = partial(told.issuperset, info.row), time.monotonic() + REWIRE_S
            while not is_told() and self._failure() is None and time.monotonic() < deadline_s:
                for gate in info.row:  # again and again: none hears answers while it comes up
                    self._send(gate, Rewire(info.row))
                with self._heard:
                    self._heard.wait_for(is_told, AGAIN_S)
            self._hear = None
            self._members.report(info)
            self.pauses.end(info.row)
            self._engine.end_unused(LINGER_S)
        self._hear_late()

    def _hear_late(self) -> None:
        """Wait for sessions that were silent then, and let their sentinels know what they missed."""
        while (asked := self._members.late()) and (info := self._info()) is not None:
            done, _ = ray.wait(list(asked.values()), num_returns=1, timeout=AGAIN_S)
            for key in [key for key, answer in asked.items() if answer in done]:
                (entries,) = answered(ray, [asked[key]], ())
                new, made = self._members.came_late(key, entries)
                for address in (entry.address for entry in new):
                    self.tell_of(address, self._members.session_host(address))
                    for gate in made:
                        self._send(address, Restarted(gate))
                    self.pauses.welcome(address, info.row)


def _read(operation: Serialized) -> Callable[[RowSurgery], Any]:
    try:
        do: Callable[[RowSurgery], Any] = deserialize(operation, writable=True)
    except Exception as error:
        raise RecipeError(
            f"the gate cannot be read in another process: {explain(error)}. What it imports must be "
            "installed on every machine, or lie in a folder that is there under the same name"
        ) from error
    return do


def _known(info: NetworkInfo, address: str) -> NetworkInfo:
    """No other gate gets this address."""
    return replace(info, past=(*info.past, address))


def _without_empty(info: NetworkInfo, gone: set[str]) -> NetworkInfo:
    """Without the hosts of gates that left, where they have no others."""
    empty = {host_of(address, info.placement) for address in gone} - set(info.places.values())
    return replace(info, hosts={name: handle for name, handle in info.hosts.items() if name not in empty})
