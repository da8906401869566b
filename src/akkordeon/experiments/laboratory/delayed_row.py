"""A row of gates whose gradients come exactly so many updates late, in the thread that calls.

    step t:   ◀── backward of what is due at each gate, tail first ──
              ── forward of batch t through the row ──▶ loss: its gradient waits for its time

Only when gates are given what they wait for is decided here. With delay 0 that is the plain loop.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any, cast

from akkordeon.core.actor import Report, Send
from akkordeon.core.diagnostics.diagnosis import Diagnosis
from akkordeon.core.errors import DataError
from akkordeon.core.messages import Backward, Message, Probe
from akkordeon.core.payload import Payload
from akkordeon.core.reports import GateStatus
from akkordeon.experiments.laboratory.delays import Delays
from akkordeon.pipeline.diagnostics.measures import copies_in
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.session.streams.live_row import ME, LiveRow

__all__ = ["DelayedRow"]


class DelayedRow(LiveRow):
    """Trains a network, a batch after the other, with gradients that are late by exact delays.

    Args:
        network: the recipe; it is copied.
        delays: of each batch at each gate.
        seed: of what is random in the gates.

    Attributes:
        copies: versions of its weights that a gate held at most, by address.
    """

    def __init__(self, network: Network, delays: Delays, seed: int = 0) -> None:
        super().__init__(network, seed)
        self._delays = delays
        self._due: defaultdict[int, list[tuple[int, str, int]]] = defaultdict(list)  # by step, tail first
        self._held: dict[tuple[str, int], Backward] = {}  # gradients that came, and are not due yet
        self.copies = dict.fromkeys(self._row, 1)

    @property
    def staleness(self) -> dict[str, Counter[int]]:
        """How often each gate updated with a gradient of each τ, by address."""
        return {address: gate.staleness_seen for address, gate in self._gates.items()}

    @property
    def diagnoses(self) -> list[Diagnosis | None]:
        """What each gate has measured, head first; None of one that does not."""
        effects = [effect for gate in self._gates.values() for effect in gate.receive(Probe(0), 0.0)]
        records = [effect.record for effect in effects if isinstance(effect, Report)]
        return [record.diagnosis for record in records if isinstance(record, GateStatus)]

    def learn(self, x: Payload, y: Any, loss: Loss) -> float:
        """Have gates learn from what is due, then send a batch through the row; its loss.

        Raises:
            DataError: a gate refused a batch, as where training diverged.
        """
        number = self.batches
        self._learn_due(number)
        loss_now, backward = self._turned(x, y, loss)
        if not math.isfinite(loss_now):
            raise DataError(f"the loss of batch {number} is {loss_now}")
        self._held[self._row[-1], number] = backward
        delays = self._delays.of(number, len(self._row))
        for place, (address, delay) in enumerate(zip(self._row, delays, strict=True)):
            self._due[number + 1 + delay].append((-place, address, number))
        for address, gate in self._gates.items():
            held, _ = copies_in(cast(GateActor, gate).weights_held())
            self.copies[address] = max(self.copies[address], held)
        return loss_now

    def finish(self) -> None:
        """Have gates learn from all that is still to come."""
        for step in sorted(self._due):
            self._learn_due(step)

    def _learn_due(self, step: int) -> None:
        for _, address, number in sorted(self._due.pop(step, ())):
            self._answers(address, self._held.pop((address, number)))

    def _sent(self, to: str, message: Message) -> list[Send]:
        """As in any row, but for gradients, which wait until they are due."""
        sent = super()._sent(to, message)
        for send in sent:
            if isinstance(send.message, Backward) and send.to != ME:
                self._held[send.to, send.message.batch.number] = send.message
        return [send for send in sent if send.to == ME or not isinstance(send.message, Backward)]
