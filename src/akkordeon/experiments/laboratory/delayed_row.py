"""A row of gates whose gradients come exactly so many updates late, in one thread.

    step t:   ◀── backward of what is due at each gate, tail first ──
              ── forward of batch t through the row ──▶ loss: its gradient waits for its time

The gates are those of every engine, with their optimizers and their rules; only when they are given what
they wait for is decided here. With delay 0 that is the plain loop.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from akkordeon.core.actor import Send
from akkordeon.core.errors import DataError
from akkordeon.core.messages import Backward, Batch, Cut, CutId, Export, Exported, Forward, Message, Refused
from akkordeon.core.numerics.autograd import with_gradients
from akkordeon.core.payload import Payload, map_tensors, samples
from akkordeon.experiments.laboratory.delays import Delays
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss, LossInputs, gradient_of, leaf_of, loss_of, to_targets_device

__all__ = ["DelayedRow"]

ME = "laboratory"


class DelayedRow:
    """Trains a network, a batch after the other, with gradients that are late by exact delays.

    Args:
        network: the recipe.
        loss: from (outputs, y) to one number.
        delays: of each batch at each gate.
        seed: of masks.

    Attributes:
        copies: versions of its weights that a gate held at most, by address.
    """

    def __init__(self, network: Network, loss: Loss, delays: Delays, seed: int = 0) -> None:
        self._network, self._loss, self._delays = network, loss, delays
        self._gates: dict[str, Any] = {spawn.address: spawn.make() for spawn in network.spawns(seed)}
        self._row = network.row()
        self._step = 0
        self._due: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        self._gradients: dict[tuple[str, int], Backward] = {}  # that came, and are not due yet
        self._y: Any = None
        self._loss_now = math.nan
        self._states: dict[str, dict[str, Tensor]] = {}
        self.copies = dict.fromkeys(self._row, 1)

    def train(self, x: Payload, y: Any) -> float:
        """Apply what is due, then send a batch through the row; its loss.

        Raises:
            DataError: a gate refused a batch, as where training diverged.
        """
        self._apply_due()
        self._y = y
        self._deliver(self._row[0], Forward(Batch(ME, self._step), x, samples(x)))
        delays = self._delays.of(self._step, len(self._row))
        for address, delay in zip(self._row, delays, strict=True):
            self._due[address, self._step + 1 + delay].append(self._step)
        for address, gate in self._gates.items():
            held = {stashed.version for stashed in gate.stash.values()} | {gate.version}
            self.copies[address] = max(self.copies[address], len(held))
        self._step += 1
        return self._loss_now

    def finish(self) -> None:
        """Apply all that is still to come."""
        while self._due:
            self._apply_due()
            self._step += 1

    @property
    def staleness(self) -> dict[str, Counter[int]]:
        """How often each gate updated with a gradient of each τ, by address."""
        return {address: gate.staleness_seen for address, gate in self._gates.items()}

    def module(self) -> nn.Module:
        """The network as it is now, as one plain module."""
        cut = CutId(ME, self._step)
        self._deliver(self._row[-1], Cut(cut))
        for address in self._row:
            self._deliver(address, Export(cut))
        return self._network.module(self._states)

    def _apply_due(self) -> None:
        for address in reversed(self._row):
            for number in self._due.pop((address, self._step), ()):
                self._deliver(address, self._gradients.pop((address, number)))

    def _deliver(self, to: str, message: Message) -> None:
        """Hand a message to a gate, and on what comes of it: gradients wait until they are due."""
        effects: Iterable[Any] = list(self._gates[to].receive(message, 0.0))
        for effect in effects:
            if not isinstance(effect, Send):
                continue
            if isinstance(effect.message, Backward) and effect.to != ME:
                self._gradients[effect.to, effect.message.batch.number] = effect.message
            elif effect.to != ME:
                self._deliver(effect.to, effect.message)
            else:
                self._came(effect.message)

    def _came(self, message: Message) -> None:
        if isinstance(message, Forward):
            self._came_back(message)
        elif isinstance(message, Exported):
            self._states[message.gate] = message.state
        elif isinstance(message, Refused):
            raise DataError(f"{message.gate} refused batch {message.batch.number}: {message.reason}")

    def _came_back(self, message: Forward) -> None:
        """The outputs of a batch: as a training sentinel, give it its loss."""
        leaves = map_tensors(leaf_of, message.payload)
        targets = to_targets_device(self._y, leaves)
        given = LossInputs(leaves, self._loss)
        loss = with_gradients(loss_of, self._loss, given.payload, targets)
        self._loss_now = loss.item()
        if not math.isfinite(self._loss_now):
            raise DataError(f"the loss of batch {message.batch.number} is {self._loss_now}")
        self._gradients[self._row[-1], message.batch.number] = Backward(
            message.batch, gradient_of(loss, leaves)
        )
