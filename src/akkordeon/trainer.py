"""A training sentinel at work: it keeps batches in flight, knows their labels, and gives each its loss.

    Item ─▶ [waiting] ─▶ Forward ─▶ …row… ─▶ Forward ─▶ loss ─▶ Backward ─▶ …row… ─▶ Backward: trained
                                                │                    │
                                                └──── Refused ───────┴──▶ Forget to the gates that hold it

Every batch sent ends as trained, refused or lost, and is counted once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from akkordeon.actor import Actor, After, Effect, Report, Send, Stop
from akkordeon.derivative import gradients
from akkordeon.errors import DataError, RecipeError
from akkordeon.messages import (
    Attach,
    Backward,
    Batch,
    Close,
    Detach,
    EpochEnd,
    Fault,
    Forget,
    Forward,
    Item,
    Probe,
    Pull,
    Refused,
    Settle,
    Settled,
    SourceFailed,
)
from akkordeon.metrics import (
    BatchCount,
    BatchRefused,
    EpochDone,
    Score,
    ScoreBoard,
    SentinelEnded,
    SentinelStatus,
    Tally,
)
from akkordeon.payload import Payload, is_floating, map_tensors, samples, tensors
from akkordeon.sentinel import Loss, Training

__all__ = ["Trainer", "loss_of", "to_targets_device"]

READ_AHEAD = 2
"""Batches are asked for in blocks of as many as may be in flight; so many blocks lie ahead at most."""

HOPELESS = 10
"""Batches refused, with none trained, after which a sentinel gives up."""


@dataclass
class _Epoch:
    """The sums of one epoch; it is over when nothing of it is left to send or under way."""

    number: int
    board: ScoreBoard
    staleness: Tally = field(default_factory=Tally)
    under_way: int = 0
    samples: int = 0
    refused: int = 0
    all_sent: bool = False


@dataclass(slots=True)
class _Flight:
    """What the sentinel keeps of a batch in flight."""

    y: Any
    samples: int
    epoch: _Epoch
    turned: bool = False  # on its way back


class Trainer(Actor):
    """The actor of :meth:`Sentinel.train`.

    Args:
        address: its own.
        name: what reports call it.
        row: addresses of the gates, head first.
        reader: address of its reader.
        recipe: the sentinel.
    """

    def __init__(self, address: str, name: str, row: tuple[str, ...], reader: str, recipe: Training) -> None:
        self.address = address
        self.name = name
        self._row = row
        self._reader = reader
        self._recipe = recipe
        self._in_flight = recipe.in_flight
        self._scores: Mapping[str, Score] = recipe.scores
        self._waiting: deque[Item | EpochEnd | SourceFailed] = deque()
        self._flights: dict[Batch, _Flight] = {}
        self._numbers = 0
        self._epoch = _Epoch(1, ScoreBoard(self._scores))
        self._epochs_done = 0
        self._epoch_began_s = 0.0
        self._samples_sent = 0
        self._samples_trained = 0
        self._all_sent = False
        self._wrong: BatchRefused | None = None  # the last refusal that the data is to blame for
        self.batches = BatchCount()
        self._unsettled: set[str] = set()
        self._not_trained: set[int] = set()  # of a replica's batches, those counted as refused or lost
        self._handlers: dict[type, Callable[[Any, float], Iterator[Effect]]] = {
            Attach: self._attach,
            Item: self._read,
            EpochEnd: self._read,
            SourceFailed: self._read,
            Forward: self._came_back,
            Backward: self._trained,
            Refused: self._refused,
            Settled: self._settled,
            Detach: self._detach,
            Probe: self._probe,
            Close: self._close,
        }

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Handle one message; see the table of handlers."""
        return self._handlers[type(message)](message, now_s)

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, message: Attach, now_s: float) -> Iterator[Effect]:
        self._epoch_began_s = now_s
        yield Send(self._reader, Pull(READ_AHEAD * self._in_flight))
        if self._recipe.seconds is not None:
            yield After(self._recipe.seconds, Detach())

    def _read(self, message: Item | EpochEnd | SourceFailed, now_s: float) -> Iterator[Effect]:
        if isinstance(message, SourceFailed) and not (self._waiting or self._flights or self._all_sent):
            raise message.error
        self._waiting.append(message)
        yield from self._send(now_s)

    def _send(self, now_s: float) -> Iterator[Effect]:
        """Send what may be sent; end when there is nothing left to send and to wait for."""
        while self._waiting and not self._all_sent:
            item = self._waiting[0]
            if isinstance(item, EpochEnd):
                self._waiting.popleft()
                yield from self._all_of_epoch_sent(item.last, now_s)
            elif isinstance(item, SourceFailed):
                if not self._flights:  # all that was read before is trained, as in a plain loop
                    self._waiting.popleft()
                    yield Send(self.address, item)
                break
            elif len(self._flights) < self._in_flight:
                self._waiting.popleft()
                yield self._launch(item)
                if self._recipe.samples is not None and self._samples_sent >= self._recipe.samples:
                    yield from self._all_of_epoch_sent(True, now_s)
                elif self.batches.sent % self._in_flight == 0:
                    yield Send(self._reader, Pull(self._in_flight))
            else:
                break
        if self._all_sent and not self._flights:
            self._raise_if_hopeless()
            yield from self._end()

    def _launch(self, item: Item) -> Effect:
        batch = Batch(self.address, self._numbers)
        self._numbers += 1
        size = samples(item.x)
        self._flights[batch] = _Flight(item.y, size, self._epoch)
        self._epoch.under_way += 1
        self._samples_sent += size
        self.batches.sent += 1
        return Send(self._row[0], Forward(batch, item.x))

    def _all_of_epoch_sent(self, last: bool, now_s: float) -> Iterator[Effect]:
        epoch = self._epoch
        epoch.all_sent = True
        self._all_sent = last
        self._epoch = _Epoch(epoch.number + 1, ScoreBoard(self._scores))
        yield from self._report(epoch, now_s)

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────

    def _came_back(self, message: Forward, now_s: float) -> Iterator[Effect]:
        """The outputs of a batch: give it its loss and send the gradient back."""
        batch, flight = message.batch, self._flights.get(message.batch)
        if flight is None:
            return
        outputs = map_tensors(_leaf, message.payload)
        targets = to_targets_device(flight.y, outputs)
        with torch.enable_grad():
            loss = loss_of(self._recipe.loss, outputs, targets)
        value = loss.item()
        if not math.isfinite(value):
            why = f"its loss is {value}, expected a finite number"
            yield from self._give_up(batch, self.name, Fault.NOT_FINITE, why, self._row, now_s)
            return
        gradient = _gradient(loss, outputs)
        flight.turned = True
        yield Send(self._row[-1], Backward(batch, gradient))
        # Scores get a copy: one that works in place would write into what the last gate works with.
        shown = map_tensors(_copy, outputs) if self._scores else None
        with torch.no_grad():
            flight.epoch.board.add(value, shown, targets, flight.samples)

    def _trained(self, message: Backward, now_s: float) -> Iterator[Effect]:
        flight = self._flights.pop(message.batch, None)
        if flight is None:
            return
        self.batches.trained += 1
        self._samples_trained += flight.samples
        epoch = flight.epoch
        epoch.under_way -= 1
        epoch.samples += flight.samples
        for staleness in message.staleness:
            epoch.staleness.add(staleness)
        yield from self._report(epoch, now_s)
        yield from self._send(now_s)

    def _refused(self, message: Refused, now_s: float) -> Iterator[Effect]:
        flight = self._flights.get(message.batch)
        if flight is not None:
            until = self._row.index(message.gate) if message.gate in self._row else len(self._row)
            # The gate that refused a forward holds nothing of it; one that refused a backward does.
            holders = self._row[: until + flight.turned]
            yield from self._give_up(
                message.batch, message.gate, message.fault, message.reason, holders, now_s
            )
        elif self._recipe.replica is not None and message.batch.number not in self._not_trained:
            yield self._revoked(message)

    def _revoked(self, message: Refused) -> Effect:
        """A batch came home, but a shard dropped the push it was in: it counts as refused after all."""
        self._not_trained.add(message.batch.number)
        self.batches.trained -= 1
        self.batches.refused += 1
        refused = BatchRefused(
            self.name, message.batch.number, message.gate, message.fault.name.lower(), message.reason
        )
        if message.fault is not Fault.TOO_STALE:
            self._wrong = refused
        return Report(refused)

    def _give_up(
        self, batch: Batch, by: str, fault: Fault, reason: str, holders: tuple[str, ...], now_s: float
    ) -> Iterator[Effect]:
        """Count a batch as refused and have the gates that hold it forget it."""
        flight = self._flights.pop(batch)
        self._keep_in_mind(batch)
        self.batches.refused += 1
        flight.epoch.under_way -= 1
        flight.epoch.refused += 1
        for gate in holders:
            yield Send(gate, Forget(*batch))
        refused = BatchRefused(self.name, batch.number, by, fault.name.lower(), reason)
        yield Report(refused)
        if fault is not Fault.TOO_STALE:  # which says that others are faster, not that the data is wrong
            self._wrong = refused
        self._raise_if_hopeless()
        yield from self._report(flight.epoch, now_s)
        yield from self._send(now_s)

    def _raise_if_hopeless(self) -> None:
        """Fail if nothing was ever learned, after enough tries or at the end."""
        enough = self.batches.refused >= max(HOPELESS, self._in_flight)
        over = self._all_sent and not self._flights
        if self._wrong is not None and not self.batches.trained and (enough or over):
            raise DataError(f"all {self.batches.refused} of its batches were refused; {self._wrong}")

    # ── ending and telling ───────────────────────────────────────────────────────────────────────────

    def _report(self, epoch: _Epoch, now_s: float) -> Iterator[Effect]:
        if not epoch.all_sent or epoch.under_way or not (epoch.samples or epoch.refused):
            return
        seconds = now_s - self._epoch_began_s
        self._epoch_began_s = now_s
        self._epochs_done += 1
        yield Report(
            EpochDone(
                sentinel=self.name,
                epoch=epoch.number,
                loss=epoch.board.loss,
                scores=epoch.board.scores(),
                samples=epoch.samples,
                seconds=seconds,
                staleness_mean=epoch.staleness.mean,
                staleness_max=epoch.staleness.largest,
                refused=epoch.refused,
            )
        )

    def _detach(self, message: Detach, now_s: float) -> Iterator[Effect]:
        if not self._all_sent:
            yield from self._all_of_epoch_sent(True, now_s)
        if message.drop:
            yield from self._drop()
        if not self._flights:
            yield from self._end()

    def _drop(self) -> Iterator[Effect]:
        if self._flights:
            self.batches.lost += len(self._flights)
            for batch in self._flights:
                self._keep_in_mind(batch)
            self._flights.clear()
            for gate in self._row:
                yield Send(gate, Forget(self.address))

    def _keep_in_mind(self, batch: Batch) -> None:
        """A batch of a replica did not come home: no shard can take it from those that did."""
        if self._recipe.replica is not None:
            self._not_trained.add(batch.number)

    def _end(self) -> Iterator[Effect]:
        """End; a replica's gates first bring to the shards what is not there yet."""
        if self._recipe.replica is None:
            yield from self._end_now()
        elif not self._unsettled:
            self._unsettled.update(self._row)
            for gate in self._row:
                yield Send(gate, Settle(self.address))

    def _settled(self, message: Settled, now_s: float) -> Iterator[Effect]:
        self._unsettled.discard(message.by)
        if not self._unsettled:
            self._raise_if_hopeless()
            yield from self._end_now()

    def _end_now(self) -> Iterator[Effect]:
        yield Send(self._reader, Close())
        yield Report(SentinelEnded(self.address, self.batches))
        yield Stop()

    def _close(self, message: Close, now_s: float) -> Iterator[Effect]:
        yield from self.last_words()
        yield Stop()

    def last_words(self) -> Iterator[Effect]:
        """Leave nothing behind in the gates, and say what was lost."""
        yield from self._drop()
        yield Send(self._reader, Close())
        yield Report(SentinelEnded(self.address, self.batches))

    def _probe(self, message: Probe, now_s: float) -> Iterator[Effect]:
        yield Report(
            SentinelStatus(
                probe=message.number,
                address=self.address,
                name=self.name,
                role="train",
                rounds=self._epochs_done,
                in_flight=len(self._flights),
                samples=self._samples_trained,
                samples_of_epoch=self._epoch.samples,
                batches=self.batches + BatchCount(),
            )
        )


def loss_of(function: Loss, outputs: Any, targets: Any) -> Tensor:
    """The loss of a batch, one number.

    Raises:
        RecipeError: the function gives something else.
    """
    loss = function(outputs, targets)
    if not isinstance(loss, Tensor):
        raise RecipeError(f"its loss must be a tensor with one number, got a {type(loss).__name__}")
    if loss.numel() != 1:
        raise RecipeError(f"its loss must be one number, got shape {tuple(loss.shape)}; take the mean")
    return loss


def to_targets_device(y: Any, outputs: Payload) -> Any:
    """The targets where the outputs are."""
    device = next(tensors(outputs)).device
    if isinstance(y, Tensor):
        return y if y.device == device else y.to(device)
    return y


def _leaf(output: Tensor) -> Tensor:
    leaf = output.detach()
    return leaf.requires_grad_() if is_floating(leaf) else leaf


def _copy(output: Tensor) -> Tensor:
    return output.detach().clone()


def _gradient(loss: Tensor, outputs: Payload) -> Payload:
    """The gradient of the loss by the outputs, in their form; None where there is none."""
    leaves = [leaf for leaf in tensors(outputs) if leaf.requires_grad]
    if not loss.requires_grad:
        raise RecipeError("its loss does not depend on the network's outputs; there is nothing to learn")
    found = iter(gradients([loss], leaves, [torch.ones_like(loss)]))
    return map_tensors(lambda leaf: next(found) if leaf.requires_grad else None, outputs)
