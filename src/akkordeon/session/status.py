"""How a network is: asks its gates and sentinels, and waits a moment for what they answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from akkordeon.core.errors import SessionError
from akkordeon.core.messages import Probe
from akkordeon.core.reports import BatchCount, GateStatus, SentinelStatus
from akkordeon.engines.base import Engine, Load
from akkordeon.session.attachment import Attachment
from akkordeon.session.outbox import Outbox
from akkordeon.session.supervisor import Supervisor
from akkordeon.session.topology import RowTopology

__all__ = ["PROBE_S", "Probes", "Status", "staleness_classes"]

PROBE_S = 2.0
"""How long ``status`` waits for actors that are in the middle of something."""


@dataclass(frozen=True)
class Status:
    """What ``session.status()`` found.

    Attributes:
        gates: head first.
        sentinels: at work.
        loads: queue lengths and busy times by address.
        now_s: the engine's time.
        batches: where those of all sentinels went, of those that have ended too.
        restarts: how often gates and shards were made anew, by address.
    """

    gates: list[GateStatus]
    sentinels: list[SentinelStatus]
    loads: dict[str, Load]
    now_s: float
    batches: BatchCount = field(default_factory=BatchCount)
    restarts: Mapping[str, int] = field(default_factory=dict)


class Probes:
    """Asks how actors are.

    Args:
        engine: may run while somebody waits.
        outbox: carries what is asked.
        supervisor: hears what is answered.
        topology: knows the gates.
    """

    def __init__(self, engine: Engine, outbox: Outbox, supervisor: Supervisor, topology: RowTopology) -> None:
        self._engine = engine
        self._outbox = outbox
        self._heard = supervisor
        self._topology = topology
        self._numbers = itertools.count(1)

    def status(self, attachments: list[Attachment], timeout_s: float, *, gates_answer: bool) -> Status:
        """How every gate and sentinel is; those too busy to answer in time as they last were."""
        sentinels = [a for a in attachments if not a.ended]
        row = self._topology.row
        number = self._ask(*row, *(a.address for a in sentinels))
        heard, gates_asked = self._heard, row if gates_answer else ()

        def all_answered() -> bool:
            return all(heard.answered.get(address, 0) >= number for address in gates_asked) and all(
                a.ended or a._comes_back or heard.answered.get(a.address, 0) >= number for a in sentinels
            )

        self._wait(all_answered, timeout_s)
        return self.known(attachments)

    def known(self, attachments: Iterable[Attachment]) -> Status:
        """How every gate and sentinel was last heard to be; nobody is asked."""
        heard, sentinels = self._heard, [a for a in attachments if not a.ended]
        at_work = [heard.sentinels[a.address] for a in sentinels if a.address in heard.sentinels]
        return Status(
            gates=[heard.gates[address] for address in self._topology.row if address in heard.gates],
            sentinels=at_work,
            loads=self._engine.loads(),
            now_s=self._engine.now_s(),
            batches=sum((s.batches for s in at_work), heard.batches_of_ended),
            restarts=dict(heard.recovery.restarts),
        )

    def ask(self, attachment: Attachment) -> None:
        """Have a sentinel tell how it is, if it does within a moment."""
        number, answered = self._ask(attachment.address), self._heard.answered
        self._wait(lambda: attachment.ended or answered.get(attachment.address, 0) >= number, PROBE_S)

    def _ask(self, *addresses: str) -> int:
        number = next(self._numbers)
        for address in addresses:
            self._outbox.send(address, Probe(number))
        return number

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for answers, unless this is a thread that they would have to come from."""
        try:
            self._engine.check_may_wait()
        except SessionError:
            return
        self._engine.wait_until(condition, timeout_s)


def staleness_classes(staleness: Mapping[int, int]) -> list[int]:
    """How often τ was 0, 1, 2–3, 4–7, and so on: class k has those of k bits."""
    classes = [0] * (max(staleness, default=0).bit_length() + 1)
    for tau, count in staleness.items():
        classes[tau.bit_length()] += count
    return classes
