"""Joining a network that runs on its own, started by somebody else with ``akkordeon network start``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch import Tensor

from akkordeon.core.addresses import sentinel_address
from akkordeon.core.checks import require_above, require_timeout
from akkordeon.core.plain_state import PlainState
from akkordeon.core.surgery.reports import RowChanged
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Training
from akkordeon.sentinels.roles import Role
from akkordeon.session.attachment import Attachment, ParentSession
from akkordeon.session.recovery.absence import Absence
from akkordeon.session.registry import Registry
from akkordeon.session.session import Session
from akkordeon.session.surgery.live_gate import LiveGate
from akkordeon.session.surgery.on_network import NetworkOperator
from akkordeon.session.topology import RowTopology

if TYPE_CHECKING:
    from akkordeon.engines.ray.joined import JoinedEngine

__all__ = ["JoinedSession", "connect"]


def connect(target: str, *, patience_s: float | None = None) -> Session:
    """Join a network on a Ray cluster; this machine must be part of the cluster.

    The data of the sentinels attached here stays in their process on this machine. When the session ends,
    or this process dies, its sentinels end and the network goes on.

    Args:
        target: ``"HOST:PORT/NAME"``.
        patience_s: how long the sentinels attached here wait for a network that went away, whatever the
            reason: once there is one of its name at that address they go on with their data where they were.
            None has them fail at once.

    Returns:
        A session; closing it ends the sentinels attached to it, and nothing else.

    Raises:
        RecipeError: a ``patience_s`` that is no number above 0.
        ClusterError: there is no cluster, it does not let us in, it has no such network, or Ray is not
            installed.
    """
    from akkordeon.engines.ray.cluster.connection import parse_target, require_ray

    address, name = parse_target(target)
    require_above("patience_s", patience_s, optional=True)
    require_ray()
    from akkordeon.engines.ray.joined import JoinedEngine

    return JoinedSession(JoinedEngine(address, name), patience_s)


LAST_S = 60.0
"""How long the weights of a network that has failed may take."""


class JoinedTopology(RowTopology):
    """A row of gates that stay when the session ends."""

    @property
    def owned(self) -> tuple[str, ...]:
        """None."""
        return ()


class JoinedRegistry(Registry):
    """The sentinels of one session, under names that are free in the whole network.

    Args:
        joined: the network.
    """

    def __init__(self, joined: JoinedEngine) -> None:
        super().__init__(joined.network.max_in_flight)
        self._joined = joined

    def register(
        self, sentinel: Sentinel, row: tuple[str, ...], session: ParentSession, number: int | None = None
    ) -> Attachment:
        """Give a sentinel the name and the number that it has in the network, and the row of then."""
        with self._named(sentinel.name, sentinel.role) as (name, number):
            return super().register(replace(sentinel, name=name), self._joined.row, session, number)

    def restore(self, attachment: Attachment, number: int | None = None) -> None:
        """Have a sentinel that has ended be at work again in the network."""
        with self._named(attachment.name, attachment.role) as (_, number):
            attachment.row = self._joined.row
            super().restore(attachment, number)

    @contextmanager
    def _named(self, name: str | None, role: Role) -> Iterator[tuple[str, int]]:
        """A name and a number in the network; free again where it is not come to."""
        name, number = self._joined.register_sentinel(name, str(role), role.answers)
        try:
            yield name, number
        except BaseException:
            self._joined.unregister_sentinel(sentinel_address(name, number))
            raise

    def renew(self, attachment: Attachment) -> None:
        """A sentinel at work is to be known to the network as it is now."""
        answers = attachment.role.answers
        self.move(
            attachment, self._joined.register_sentinel(attachment.name, str(attachment.role), answers)[1]
        )

    def withdraw(self, attachment: Attachment) -> None:
        """A sentinel that was registered did not come."""
        super().withdraw(attachment)
        self._joined.unregister_sentinel(attachment.address)


class JoinedSession(Session):
    """One of perhaps many sessions of a network that outlives them.

    Names of sentinels are the network's: no two sessions have the same. ``every_epoch`` of a validator
    counts the epochs of the sentinels of its own session.
    """

    def __init__(self, engine: JoinedEngine, patience_s: float | None = None) -> None:
        self._joined = engine
        self._absence: Absence | None = None
        topology, registry = JoinedTopology(engine.network), JoinedRegistry(engine)
        super().__init__(engine.network, engine, engine.seed, topology=topology, registry=registry)
        self._renew = registry.renew
        self._operations.number_from(uuid4().int >> 80)
        self._operator = NetworkOperator(self._operations, engine, self._wait)
        if patience_s is not None:
            self._absence = Absence(engine, topology.row, registry, self._relaunch, patience_s)
            self.at_close(self._absence.give_up)

    def _on_report(self, record: Any) -> None:
        if self._absence is not None and self._absence.hear(record):
            return
        if isinstance(record, RowChanged):
            self._become(self._joined.network)
        super()._on_report(record)

    def _become(self, network: Network) -> None:
        """The network has another row, with which sentinels go on; the registrar tells them."""
        self._topology.become(network)
        for attachment in self._registry.at_work():
            self._registry.rewire(attachment, network.row())
        if self._absence is not None:
            self._absence.rearranged(network.row())

    def gate(self, name: str) -> LiveGate:
        """A gate of the network, to be changed while it is at work; see :meth:`Session.gate`."""
        return LiveGate(super().gate(name).address, self._operator)

    def _attach(self, sentinels: Sequence[Training | Evaluation]) -> list[Attachment]:
        if self._absence is not None:
            self._absence.wait_until_over()
        return super()._attach(sentinels)

    def _restart(self, attachment: Attachment) -> None:
        if self._absence is not None:
            self._absence.wait_until_over()
        super()._restart(attachment)

    def _relaunch(self, starts: Mapping[Attachment, PlainState | None]) -> None:
        for attachment in starts:
            self._renew(attachment)
        self._launcher.relaunch(starts)

    def detach(self, name: str, drop: bool = False) -> None:
        """Have a sentinel end, one of another session too; see :meth:`Session.detach`."""
        if any(a.name == name and not a.ended for a in self.attachments):
            super().detach(name, drop)
        else:
            self._joined.detach(name, drop)

    def states(
        self, timeout: float | None = None, *, partial: bool = False, ema: bool = False
    ) -> dict[str, dict[str, Tensor]]:
        """Weights and buffers of one consistent cut; see :meth:`Session.states`.

        When a gate has failed: those that the network knows of, of the gates' ends or of a cut before; of the
        average nothing is known then.

        Raises:
            SessionClosedError: the session has ended; the gates went on without it.
            ClusterError: a gate has failed, and its weights are not known.
            WaitTimeoutError: they did not come in time.
        """
        require_timeout(timeout)
        if self._error is not None and not self._closed and not ema:
            states: dict[str, dict[str, Tensor]] = self._joined.last_states(timeout or LAST_S)
            return states
        self._check_open()
        return super().states(timeout, partial=partial, ema=ema)
