"""Gates that come and go in a network that runs on its own, whose sentinels are of many sessions.

The session that is asked sends the operation to the registrar, which carries it out where it cannot be left
halfway; all sessions hear of the new row, and their sentinels go on with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.network import Network
from akkordeon.session.recovery.gates import GateRecovery
from akkordeon.session.surgery.live_gate import Put
from akkordeon.session.surgery.operations import Carrier, Halt, Operations, Sender, Wait
from akkordeon.session.topology import RowTopology

__all__ = ["NetworkOperator", "rearranged"]

HEARD_S = 30.0
"""How long a session may take to hear of the row that it asked for."""


class RowSite(Carrier, Sender, Halt, Protocol):
    """Where the row is changed: in the registrar."""

    recovery: GateRecovery | None
    wait: Wait

    @property
    def network(self) -> Network:
        """The recipe."""

    @property
    def seed(self) -> int:
        """Of the network."""

    @property
    def past(self) -> tuple[str, ...]:
        """Addresses of all gates that there ever were."""

    @property
    def edition(self) -> int:
        """How often the row was changed."""

    def begin(self, hear: Callable[[Any], None]) -> None:
        """Have somebody hear what gates and sentinels report of changes."""

    def become(self, network: Network) -> None:
        """The row is that of another recipe."""

    def tell(self, record: Any) -> None:
        """Have those who look on see a record."""


def rearranged(
    site: RowSite, address: str, gate: Gate | None, put: Put, timeout: float | None
) -> tuple[str | None, int]:
    """Put something in the place of a gate; see :meth:`Operations.rearrange`.

    Returns:
        The address of the new gate, and how often the row was changed by now.
    """
    operations = _NetworkOperations(site, RowTopology(site.network, site.past))
    site.begin(operations.hear)
    return operations.rearrange(address, gate, put, timeout), site.edition


class _NetworkOperations(Operations):
    """Operations on a row that others know as well."""

    def __init__(self, site: RowSite, topology: RowTopology) -> None:
        recovery = site.recovery or _none_comes_back(site)
        here = site, topology, site, site, recovery, None, site.seed
        super().__init__(*here, wait=site.wait, tell=site.tell)
        self._site = site

    def _become(self, row: tuple[str, ...]) -> None:
        super()._become(row)
        network = self._topology.network
        assert isinstance(network, Network), "replicas run with their session"
        self._site.become(network)


def _none_comes_back(site: RowSite) -> GateRecovery:
    nobody: Any = site  # is asked to make a gate anew
    return GateRecovery(
        None,
        (),
        nobody,
        send=site.send,
        tell=site.tell,
        talk_to=lambda gate: (),
        give_up=lambda gate, why, error: None,
    )


class JoinedNetwork(Protocol):
    """The way to the registrar."""

    edition: int

    def check_may_wait(self) -> None:
        """Raise where a wait in this thread could never end."""

    def rearrange(self, operation: Callable[[Any], Any]) -> Any:
        """Have the registrar carry out a change of the row."""


class NetworkOperator:
    """Carries out what is asked of a gate of a network that runs on its own.

    Args:
        operations: of the session.
        joined: the network.
        wait: has the session wait.
    """

    def __init__(self, operations: Operations, joined: JoinedNetwork, wait: Wait) -> None:
        self._operations = operations
        self._joined = joined
        self._wait = wait

    def change(self, address: str, settings: Mapping[str, Any], timeout: float | None) -> None:
        """Have a gate learn with other settings; see :meth:`LiveGate.set`."""
        self._operations.change(address, settings, timeout)

    def rearrange(self, address: str, gate: Gate | None, put: Put, timeout: float | None) -> str | None:
        """Put something in the place of a gate; the address of the new one."""
        self._joined.check_may_wait()
        operation = partial(rearranged, address=address, gate=gate, put=put, timeout=timeout)
        new: str | None
        new, edition = self._joined.rearrange(operation)
        what = "the row was changed, and this session has not heard of it"
        self._wait(lambda: self._joined.edition >= edition, HEARD_S, what, drain=False)
        return new
