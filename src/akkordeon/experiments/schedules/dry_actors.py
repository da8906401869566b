"""Actors that keep to the protocol and compute nothing: for worlds too large to train in.

They send what gates and sentinels send, keep what those keep, count versions and staleness as those do.
What a tensor would weigh on a link is declared (:class:`Ghost`), what work would cost is the simulator's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from akkordeon.core.actor import Actor, Effect, Report, Send, Spawn, Stop
from akkordeon.core.messages import Backward, Batch, Forget, Forward, Message
from akkordeon.core.reports import BatchCount, SentinelEnded
from akkordeon.core.schedules import ASYNC, Schedule
from akkordeon.engines.simulator.links import Ghost

__all__ = ["DryGate", "DryTrainer", "Restart", "dry_row"]


@dataclass(frozen=True, slots=True)
class Restart(Message):
    """A gate is back and knows nothing: what was in flight is lost. Supervisor to sentinel."""


class DryGate(Actor):
    """A gate without a module.

    Args:
        address: its own.
        previous: the gate before it; None for the first.
        following: the gate after it; None for the last.
        forward_bytes: of what it sends on.
        backward_bytes: of what it sends back.
        batches_per_update: that it makes an update of.

    Attributes:
        most_stashed: batches that were on their way behind it at once.
    """

    def __init__(
        self,
        address: str,
        previous: str | None,
        following: str | None,
        forward_bytes: int,
        backward_bytes: int,
        batches_per_update: int = 1,
    ) -> None:
        self.address = address
        self._previous = previous
        self._next = following
        self._output = Ghost(forward_bytes)
        self._gradient = Ghost(backward_bytes)
        self._enough = batches_per_update
        self._backwards = 0
        self.version = 0
        self.most_stashed = 0
        self.stash: dict[Batch, int] = {}
        self.staleness_seen: Counter[int] = Counter()
        self._forgotten: dict[str, int] = {}  # by sentinel, the last number to drop

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Forward, backward, forget."""
        kind = type(message)
        if kind is Forward:
            batch = message.batch
            if not (self._forgotten and self._is_forgotten(batch)):
                self.stash[batch] = self.version
                self.most_stashed = max(self.most_stashed, len(self.stash))
                yield Send(self._next or batch.sentinel, Forward(batch, self._output))  # type: ignore[arg-type]
        elif kind is Backward:
            batch = message.batch
            version = self.stash.pop(batch, None)
            if version is not None:
                yield Send(self._previous or batch.sentinel, Backward(batch, self._gradient))  # type: ignore[arg-type]
                self.staleness_seen[self.version - version] += 1
                self._backwards += 1
                self.version = self._backwards // self._enough
        elif kind is Forget:
            self._forgotten[message.sender] = message.number
            self.stash = {b: version for b, version in self.stash.items() if not self._is_forgotten(b)}

    def _is_forgotten(self, batch: Batch) -> bool:
        return batch.number <= self._forgotten.get(batch.sentinel, -1)


class DryTrainer(Actor):
    """A training sentinel without data.

    Args:
        address: its own.
        row: addresses of the gates.
        in_flight: how many batches may be under way.
        batches: how many to train; None for ever.
        forward_bytes: of an input.
        backward_bytes: of a gradient of the loss.
        schedule: how many of those under way it allows.
    """

    def __init__(
        self,
        address: str,
        row: Sequence[str],
        in_flight: int,
        batches: int | None = None,
        forward_bytes: int = 0,
        backward_bytes: int = 0,
        schedule: Schedule = ASYNC,
    ) -> None:
        self.address = address
        self._row = row
        self._in_flight = in_flight
        self._schedule = schedule
        self._left = batches
        self._numbers = 0
        self._flights: set[Batch] = set()
        self._input = Ghost(forward_bytes)
        self._gradient = Ghost(backward_bytes)
        self.batches = BatchCount()
        self.latest_s = 0.0  # when a batch last came back
        self.ended = False

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Begin, give a batch its loss, send the next, begin again."""
        kind = type(message)
        if kind is Forward:
            if message.batch in self._flights:
                yield Send(self._row[-1], Backward(message.batch, self._gradient))  # type: ignore[arg-type]
            return
        if kind is Backward:
            if message.batch not in self._flights:
                return
            self._flights.remove(message.batch)
            self.batches.trained += 1
            self.latest_s = now_s
        elif kind is Restart:
            self.batches.lost += len(self._flights)
            self._flights.clear()
            for gate in self._row:
                yield Send(gate, Forget(self.address, self._numbers - 1))
        yield from self._launch()

    def _launch(self) -> Iterator[Effect]:
        room = self._schedule.room(self._in_flight, self.batches.trained)
        while len(self._flights) < room and (self._left is None or self.batches.sent < self._left):
            batch = Batch(self.address, self._numbers)
            self._numbers += 1
            self._flights.add(batch)
            self.batches.sent += 1
            yield Send(self._row[0], Forward(batch, self._input))  # type: ignore[arg-type]
        if not self._flights:
            self.ended = True
            yield Report(SentinelEnded(self.address, self.batches))
            yield Stop()


@dataclass
class DryRow:
    """A row of dry gates and their sentinels, as they were made last.

    Attributes:
        gates: by address; one that crashed is replaced by the one that came back.
        trainers: by address.
    """

    gates: dict[str, DryGate] = field(default_factory=dict)
    trainers: dict[str, DryTrainer] = field(default_factory=dict)

    def gate(self, *arguments: Any) -> DryGate:
        gate = self.gates[arguments[0]] = DryGate(*arguments)
        return gate

    def trainer(self, *arguments: Any) -> DryTrainer:
        trainer = self.trainers[arguments[0]] = DryTrainer(*arguments)
        return trainer

    @property
    def trained(self) -> int:
        """Batches that came back to their sentinels."""
        return sum(trainer.batches.trained for trainer in self.trainers.values())


def dry_row(
    spawn: Callable[[Spawn], None],
    gates: int,
    sentinels: int = 1,
    in_flight: int = 1,
    batches: int | None = None,
    forward_bytes: int = 0,
    backward_bytes: int = 0,
) -> DryRow:
    """Put a row of dry gates and their sentinels on a stage.

    Args:
        spawn: an engine's.
        gates: how many.
        sentinels: how many, each with
        in_flight: so many batches under way, and
        batches: so many to train.
        forward_bytes: of what any of them sends forward.
        backward_bytes: of what any of them sends back.
    """
    row, made = tuple(f"gate/{i}" for i in range(gates)), DryRow()
    for i, address in enumerate(row):
        previous, following = row[i - 1] if i else None, row[i + 1] if i + 1 < gates else None
        make = partial(made.gate, address, previous, following, forward_bytes, backward_bytes)
        spawn(Spawn(address, make))
    for j in range(sentinels):
        own = f"sentinel/{j}"
        trainer = partial(made.trainer, own, row, in_flight, batches, forward_bytes, backward_bytes)
        spawn(Spawn(own, trainer))
    return made
