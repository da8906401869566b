"""A training sentinel at work: it keeps batches in flight, knows their labels, and gives each its loss.

    Item ─▶ [waiting] ─▶ Forward ─▶ …row… ─▶ Forward ─▶ loss ─▶ Backward ─▶ …row… ─▶ Backward: trained
                                                │                    │
                                                └──── Refused ───────┴──▶ Forget to the gates that hold it

Every batch sent ends as trained, refused or lost, and is counted once.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from akkordeon.core.actor import Actor, After, Effect, Report, Send, Stop
from akkordeon.core.errors import DataError
from akkordeon.core.messages import (
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
    SourceFailed,
)
from akkordeon.core.payload import map_tensors, samples
from akkordeon.core.reports import (
    BatchCount,
    BatchRefused,
    EpochDone,
    SentinelEnded,
    SentinelStatus,
    TrainingProgress,
)
from akkordeon.core.shard_messages import Settle, Settled
from akkordeon.sentinels.loss import LossInputs, check_graph, gradient_of, leaf_of, loss_of, to_targets_device
from akkordeon.sentinels.recipes import Training
from akkordeon.sentinels.scores import Score, ScoreBoard, Tally

__all__ = ["Trainer"]

READ_AHEAD = 2
"""Batches are asked for in blocks of as many as may be in flight; so many blocks lie ahead at most."""

HOPELESS = 10
"""Batches refused in a row after which a sentinel gives up; as many as are in flight, where that is more."""

NOT_TRAINED_MAX = 4096
"""Of so many batches that did not end as trained it is known that they did not."""

NEARLY_ALL = 0.9
"""The share of batches refused from which a sentinel that has come to its end has failed."""


@dataclass
class _Epoch:
    """The sums of one epoch; it is over when nothing of it is left to send or under way."""

    number: int
    board: ScoreBoard
    window: _Window = field(default_factory=lambda: _Window())
    staleness: Tally = field(default_factory=Tally)  # these three without the window
    samples: int = 0
    refused: int = 0
    under_way: int = 0
    all_sent: bool = False

    def close_window(self) -> _Window:
        """Count the window in, and begin another."""
        closed, self.window = self.window, _Window()
        self.staleness.include(closed.staleness)
        self.samples += closed.samples
        self.refused += closed.refused
        return closed


@dataclass
class _Window:
    """The sums of the batches of an epoch since the last report."""

    staleness: Tally = field(default_factory=Tally)
    batches: int = 0
    samples: int = 0
    refused: int = 0


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
        endless: nobody knows whether its source ends; scores keep no batch beyond a report of progress.
    """

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        recipe: Training,
        endless: bool = False,
    ) -> None:
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
        self._endless = endless
        self._epoch = self._new_epoch(1)
        self._epochs_done = 0
        self._epoch_began_s = 0.0
        self._reported_s = 0.0
        self._samples_sent = 0
        self._samples_trained = 0
        self._all_sent = False
        self._cut_short = False
        self._wrong: Refused | None = None  # the last refusal; none of these three
        self._refused_in_a_row = 0  # counts staleness, which says that others are faster,
        self._refused_at_all = 0  # not that something is wrong
        self._refused_before = 0  # in a row, before the latest that came home
        self._loss_checked = False
        self.batches = BatchCount()
        self._unsettled: set[str] = set()
        self._not_trained: OrderedDict[int, None] = OrderedDict()  # the latest batches refused or lost
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
        self._epoch_began_s = self._reported_s = now_s
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
        self._epoch = self._new_epoch(epoch.number + 1)
        yield from self._report(epoch, now_s)

    def _new_epoch(self, number: int) -> _Epoch:
        return _Epoch(number, ScoreBoard(self._scores, self._endless))

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────

    def _came_back(self, message: Forward, now_s: float) -> Iterator[Effect]:
        """The outputs of a batch: give it its loss and send the gradient back."""
        batch, flight = message.batch, self._flights.get(message.batch)
        if flight is None:
            return
        leaves = map_tensors(leaf_of, message.payload)
        targets = to_targets_device(flight.y, leaves)
        with torch.enable_grad():
            given = LossInputs(leaves)
            loss = loss_of(self._recipe.loss, given.payload, targets)
        value = loss.item()
        if not math.isfinite(value):
            why = f"its loss is {value}, expected a finite number"
            refused = Refused(batch, self.name, Fault.NOT_FINITE, why)
            yield from self._give_up(refused, self._row, now_s)
            return
        if not self._loss_checked:
            check_graph(loss, leaves)
            self._loss_checked = True
        gradient = gradient_of(loss, leaves)
        flight.turned = True
        yield Send(self._row[-1], Backward(batch, gradient))
        with torch.no_grad():
            shown = given.unchanged() if self._scores else None
            flight.epoch.board.add(value, shown, targets, flight.samples)

    def _trained(self, message: Backward, now_s: float) -> Iterator[Effect]:
        flight = self._flights.pop(message.batch, None)
        if flight is None:
            return
        self.batches.trained += 1
        self._refused_before, self._refused_in_a_row = self._refused_in_a_row, 0
        self._samples_trained += flight.samples
        epoch = flight.epoch
        epoch.under_way -= 1
        window = epoch.window
        window.batches += 1
        window.samples += flight.samples
        for staleness in message.staleness:
            window.staleness.add(staleness)
        if epoch.all_sent and not epoch.under_way:
            yield from self._report(epoch, now_s)
        elif self._report_due(window, now_s):
            yield from self._report_progress(epoch, now_s)
        yield from self._send(now_s)

    def _refused(self, message: Refused, now_s: float) -> Iterator[Effect]:
        flight = self._flights.get(message.batch)
        if flight is not None:
            until = self._row.index(message.gate) if message.gate in self._row else len(self._row)
            # The gate that refused a forward holds nothing of it; one that refused a backward does.
            yield from self._give_up(message, self._row[: until + flight.turned], now_s)
        elif message.batch.number not in self._not_trained:
            yield from self._revoked(message)

    def _revoked(self, why: Refused) -> Iterator[Effect]:
        """A batch came home, but a gate took its update back, or a shard dropped its push: it is refused."""
        self._keep_in_mind(why.batch)
        self.batches.trained -= 1
        self.batches.refused += 1
        yield Report(self._record_of(why))
        if why.fault is not Fault.TOO_STALE:
            self._wrong = why
            self._refused_at_all += 1
            self._refused_in_a_row = self._refused_before = self._refused_before + 1
            self._raise_if_hopeless()

    def _give_up(self, why: Refused, holders: tuple[str, ...], now_s: float) -> Iterator[Effect]:
        """Count a batch as refused and have the gates that hold it forget it."""
        flight = self._flights.pop(why.batch)
        self._keep_in_mind(why.batch)
        self.batches.refused += 1
        flight.epoch.under_way -= 1
        flight.epoch.window.refused += 1
        for gate in holders:
            yield Send(gate, Forget(*why.batch))
        yield Report(self._record_of(why))
        if why.fault is not Fault.TOO_STALE:
            self._wrong = why
            self._refused_in_a_row += 1
            self._refused_at_all += 1
            self._raise_if_hopeless()
        yield from self._report(flight.epoch, now_s)
        yield from self._send(now_s)

    def _record_of(self, why: Refused) -> BatchRefused:
        return BatchRefused(self.name, why.batch.number, why.gate, why.fault.name.lower(), why.reason)

    def _raise_if_hopeless(self) -> None:
        """Fail where too many batches in a row were refused, or at the end nearly all."""
        if self._wrong is None:
            return
        over = self._all_sent and not self._flights
        refused, sent, trained = self._refused_at_all, self.batches.sent, self.batches.trained
        in_a_row, enough = self._refused_in_a_row, max(HOPELESS, self._in_flight)
        if not trained and (in_a_row >= enough or over):
            what = f"all {self.batches.refused} of its batches were refused"
        elif in_a_row >= enough:
            what = f"{in_a_row} of its batches in a row were refused, after {trained} were trained"
        elif over and refused >= max(HOPELESS, NEARLY_ALL * sent):
            what = f"{refused} of its {sent} batches were refused"
        else:
            return
        why = f"{what}; {self._record_of(self._wrong)}"
        if trained and self._wrong.fault is Fault.NOT_FINITE:
            why += "; if training diverges, lower the learning rate or put fewer batches in flight"
        raise DataError(why) from self._wrong.error

    # ── ending and telling ───────────────────────────────────────────────────────────────────────────

    def _report(self, epoch: _Epoch, now_s: float) -> Iterator[Effect]:
        if not epoch.all_sent or epoch.under_way:
            return
        epoch.close_window()
        if not (epoch.samples or epoch.refused):
            return
        seconds = now_s - self._epoch_began_s
        self._epoch_began_s = self._reported_s = now_s
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

    def _report_due(self, window: _Window, now_s: float) -> bool:
        """Whether so many batches, or so many seconds, have passed since the last report."""
        every = self._recipe.report_every
        if every is None:
            return False
        return window.batches >= every if isinstance(every, int) else now_s - self._reported_s >= every

    def _report_progress(self, epoch: _Epoch, now_s: float) -> Iterator[Effect]:
        window = epoch.close_window()
        seconds, self._reported_s = now_s - self._reported_s, now_s
        loss, scores = epoch.board.window()
        yield Report(
            TrainingProgress(
                sentinel=self.name,
                epoch=epoch.number,
                loss=loss,
                scores=scores,
                batches=window.batches,
                samples=window.samples,
                seconds=seconds,
                staleness_mean=window.staleness.mean,
                staleness_max=window.staleness.largest,
                refused=window.refused,
            )
        )

    def _detach(self, message: Detach, now_s: float) -> Iterator[Effect]:
        if not self._all_sent:
            self._cut_short = True
            yield from self._all_of_epoch_sent(True, now_s)
        if message.drop:
            yield from self._drop()
        if not self._flights:
            yield from self._end()

    def _drop(self) -> Iterator[Effect]:
        if self._flights:
            self._cut_short = True
            self.batches.lost += len(self._flights)
            for batch in self._flights:
                self._keep_in_mind(batch)
            self._flights.clear()
            for gate in self._row:
                yield Send(gate, Forget(self.address))

    def _keep_in_mind(self, batch: Batch) -> None:
        """A batch is not among those trained: nothing that is still to come can take it from them again."""
        self._not_trained[batch.number] = None
        if len(self._not_trained) > NOT_TRAINED_MAX:
            self._not_trained.popitem(last=False)

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
        yield Report(SentinelEnded(self.address, self.batches, cut_short=self._cut_short))
        yield Stop()

    def _close(self, message: Close, now_s: float) -> Iterator[Effect]:
        yield from self.last_words()
        yield Stop()

    def last_words(self) -> Iterator[Effect]:
        """Leave nothing behind in the gates, and say what was lost."""
        self._cut_short = self._cut_short or not self._all_sent
        yield from self._drop()
        yield Send(self._reader, Close())
        yield Report(SentinelEnded(self.address, self.batches, cut_short=self._cut_short))

    def _probe(self, message: Probe, now_s: float) -> Iterator[Effect]:
        yield Report(
            SentinelStatus(
                probe=message.number,
                address=self.address,
                name=self.name,
                role=str(self._recipe.role),
                rounds=self._epochs_done,
                in_flight=len(self._flights),
                samples=self._samples_trained,
                samples_of_epoch=self._epoch.samples + self._epoch.window.samples,
                batches=self.batches + BatchCount(),
            )
        )
