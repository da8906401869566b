"""What runs inside a Ray actor: a dispatcher with some actors, and the way to the hosts of the others."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import ray
import torch

from akkordeon.core.messages import Message
from akkordeon.core.reports import ActorFailed, EpochDone, GateLeft, GateStatus, RoundDone, SentinelEnded
from akkordeon.engines.base import Load
from akkordeon.engines.ray.serialization import Letter, Opened, Parcel, pack, seal, tolerate_read_only, unpack
from akkordeon.engines.threads import Threads

__all__ = ["Dispatcher", "Home", "Host", "Routes"]

Routes = dict[str, Any]
"""Handles of hosts, by the address of an actor there. None stands for the user's process."""

COLLECT_S = 1.0
"""How long ``collect`` waits for something to hand over."""

MEMORABLE = ActorFailed | EpochDone | GateLeft | GateStatus | RoundDone | SentinelEnded
"""Records that a detached network keeps, so that whoever asks later can be told."""


class Dispatcher(Threads):
    """The threads engine of one process: what is for an actor elsewhere is posted there.

    Args:
        post: sends a message to another process; False if nobody knows the address.
        workers: as of :class:`Threads`.
    """

    def __init__(self, post: Callable[[str, Message], bool], workers: int | None = None) -> None:
        super().__init__(workers)
        self._post_elsewhere = post

    @property
    def is_repeatable(self) -> bool:
        """Other processes have a say in the order, with one worker too."""
        return False

    def _post(self, to: str, message: Message) -> bool:
        return self._post_elsewhere(to, message)


class Host:
    """A process that holds actors. Ray calls its methods one after the other, in the order of each caller.

    Args:
        seed: of torch's generator here.
        workers: of the dispatcher.
        wire_dtype: see :func:`akkordeon.engines.ray.serialization.pack`.
        folders: where the user's process finds modules; they are looked through last.
    """

    def __init__(
        self,
        seed: int,
        workers: int | None = None,
        wire_dtype: torch.dtype | None = None,
        folders: Iterable[str] = (),
    ) -> None:
        tolerate_read_only()
        sys.path.extend(folder for folder in folders if folder not in sys.path)
        self._wire_dtype = wire_dtype
        self._routes: Routes = {}
        self._homes: dict[str, Any] = {}
        self._keeper: Any = None
        self._dispatcher = Dispatcher(self._post, workers)
        self._dispatcher.start(self._tell, seed)

    # ── from the engine ──────────────────────────────────────────────────────────────────────────────

    def spawn(self, address: str, make: Parcel) -> Parcel | None:
        """Make an actor here; what making it raises is handed back."""
        try:
            self._dispatcher.spawn(address, unpack(make, writable=True))
        except Exception as error:
            return pack(error)
        self._routes.pop(address, None)
        return None

    def route(self, routes: Routes) -> None:
        """Know where these actors are. Has happened when the caller hears of it."""
        self._routes = {**self._routes, **routes}  # never changed: the dispatcher looks through it

    def unroute(self, addresses: Iterable[str]) -> None:
        """These actors are no more."""
        gone = set(addresses)
        self._routes = {a: handle for a, handle in self._routes.items() if a not in gone}

    def listen(self, key: str, home: Any) -> None:
        """Tell this home, too, of every report from now on."""
        self._homes = {**self._homes, key: home}

    def deafen(self, key: str) -> None:
        """Tell that home no more."""
        self._homes = {known: home for known, home in self._homes.items() if known != key}

    def keep(self, keeper: Any) -> None:
        """Tell the keeper of a network what is to be remembered."""
        self._keeper = keeper

    def loads(self) -> dict[str, Load]:
        """How busy the actors here are."""
        return self._dispatcher.loads()

    def pulse(self) -> None:
        """Answer, as long as this process lives."""

    def whereabouts(self) -> tuple[str, int]:
        """The address of this node, and the number of this process."""
        node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return node, os.getpid()

    # ── messages ─────────────────────────────────────────────────────────────────────────────────────

    @ray.method(num_returns=0)
    def enqueue(self, letter: Letter) -> None:
        """Put a message into a mailbox here."""
        opened = Opened(letter)
        try:
            message = opened.message()
        except Exception as error:
            self._tell(ActorFailed(opened.to, "a message that cannot be unpacked", error))
            return
        self._dispatcher.send(opened.to, message)

    def _post(self, to: str, message: Message) -> bool:
        """Send a message to where its receiver is. Runs on the dispatcher's workers."""
        handle = self._routes.get(to)
        if handle is None:
            return False
        handle.enqueue.remote(seal(to, message, self._wire_dtype))
        return True

    def _tell(self, record: Any) -> None:
        """Pass a report on. Runs on the dispatcher's workers, one at a time."""
        parcel = pack(record)
        for home in self._homes.values():
            home.report.remote(parcel)
        if self._keeper is not None and isinstance(record, MEMORABLE):
            self._keeper.report.remote(parcel)


class Home(Host):
    """The host of a process's own sentinels, on its node; it gathers what the process is to hear of."""

    def __init__(
        self,
        seed: int,
        workers: int | None = None,
        wire_dtype: torch.dtype | None = None,
        folders: Iterable[str] = (),
    ) -> None:
        self._outbox: deque[tuple[str | None, Parcel]] = deque()
        self._waiting = threading.Condition()
        super().__init__(seed, workers, wire_dtype, folders)

    @ray.method(num_returns=0)
    def report(self, parcel: Parcel) -> None:
        """Take a report in from another host."""
        self._put(None, parcel)

    @ray.method(concurrency_group="desk")
    def collect(self) -> list[tuple[str | None, Parcel]]:
        """Hand over reports (to None) and messages, once there are any. Runs on a thread of its own."""
        with self._waiting:
            self._waiting.wait_for(lambda: self._outbox, COLLECT_S)
            found = list(self._outbox)
            self._outbox.clear()
        return found

    def _put(self, to: str | None, parcel: Parcel) -> None:
        with self._waiting:
            self._outbox.append((to, parcel))
            self._waiting.notify()

    def _post(self, to: str, message: Message) -> bool:
        if to in self._routes and self._routes[to] is None:
            self._put(to, pack(message))
            return True
        return super()._post(to, message)

    def _tell(self, record: Any) -> None:
        self._put(None, pack(record))
        if self._keeper is not None and isinstance(record, MEMORABLE):
            self._keeper.report.remote(pack(record))
