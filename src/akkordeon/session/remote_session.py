"""Joining a network that runs on its own, started by somebody else with ``akkordeon network start``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from akkordeon.core.addresses import sentinel_address
from akkordeon.core.messages import Close
from akkordeon.sentinels.recipes import Evaluation, Training
from akkordeon.session.attachment import Attachment
from akkordeon.session.session import Session

if TYPE_CHECKING:
    from akkordeon.engines.ray.detached import Joined

__all__ = ["JoinedSession", "connect"]


def connect(target: str) -> Session:
    """Join a network on a Ray cluster; this machine must be part of the cluster.

    The data of the sentinels attached here stays in their process on this machine. When the session ends,
    or this process dies, its sentinels end and the network goes on.

    Args:
        target: ``"HOST:PORT/NAME"``.

    Returns:
        A session; closing it ends the sentinels attached to it, and nothing else.

    Raises:
        ClusterError: there is no cluster, it does not let us in, it has no such network, or Ray is not
            installed.
    """
    from akkordeon.engines.ray.connection import parse_target, require_ray

    address, name = parse_target(target)
    require_ray()
    from akkordeon.engines.ray.detached import Joined

    return JoinedSession(Joined(address, name))


LAST_S = 60.0
"""How long the weights of a network that has failed may take."""


class JoinedSession(Session):
    """One of perhaps many sessions of a network that outlives them.

    Names of sentinels are the network's: no two sessions have the same. ``every_epoch`` of a validator
    counts the epochs of the sentinels of its own session.
    """

    def __init__(self, engine: Joined) -> None:
        self._joined = engine
        super().__init__(engine.network, engine, engine.seed)

    def _place(self, sentinel: Training | Evaluation, number: int | None = None) -> Attachment:
        """Have the actors of a sentinel made, under a name that is free in the whole network."""
        name, number = self._joined.register_sentinel(
            sentinel.name, str(sentinel.role), sentinel.role.answers
        )
        try:
            return super()._place(replace(sentinel, name=name), number)
        except BaseException:
            self._joined.unregister_sentinel(sentinel_address(name, number))
            raise

    def detach(self, name: str, drop: bool = False) -> None:
        """Have a sentinel end, one of another session too; see :meth:`Session.detach`."""
        if any(a.name == name and not a.ended for a in self.attachments):
            super().detach(name, drop)
        else:
            self._joined.detach(name, drop)

    def states(self, timeout: float | None = None, *, partial: bool = False) -> dict[str, dict[str, Tensor]]:
        """Weights and buffers of one consistent cut; see :meth:`Session.states`.

        When a gate has failed: those that the network knows of, of the gates' ends or of a cut before.

        Raises:
            SessionClosedError: the session has ended; the gates went on without it.
            ClusterError: a gate has failed, and its weights are not known.
            WaitTimeoutError: they did not come in time.
        """
        if self._error is not None and not self._closed:
            states: dict[str, dict[str, Tensor]] = self._joined.last_states(timeout or LAST_S)
            return states
        self._check_open()
        return super().states(timeout, partial=partial)

    def _all_left(self) -> bool:
        """The gates stay."""
        return True

    def _close_actors(self) -> None:
        for attachment in self.attachments:
            if not attachment.ended:
                self._send(attachment.address, Close())
