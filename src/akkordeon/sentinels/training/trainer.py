"""A training sentinel at work: it keeps batches in flight, knows their labels, and gives each its loss.

    Item ─▶ [waiting] ─▶ Forward ─▶ …row… ─▶ Forward ─▶ loss ─▶ Backward ─▶ …row… ─▶ Backward: trained
                                                │                    │
                                                └──── Refused ───────┴──▶ Forget to the gates that hold it

Every batch sent ends as trained, refused or lost, and is counted once, however often it had to be sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from akkordeon.core.actor import After, Effect, Report, Send, Stop
from akkordeon.core.checkpoint_messages import AllRead, Locate
from akkordeon.core.messages import (
    Attach,
    Backward,
    Detach,
    EpochEnd,
    Fault,
    Forget,
    Forward,
    Item,
    Pull,
    Refused,
    SourceFailed,
)
from akkordeon.core.numerics.autograd import without_gradients
from akkordeon.core.payload import samples
from akkordeon.core.plain_state import Applied, PlainState
from akkordeon.core.recovery.messages import ForgetBefore, Restarted
from akkordeon.core.reports import BatchCount
from akkordeon.core.schedules import ASYNC, Schedule
from akkordeon.data.position import Places
from akkordeon.sentinels.base import START
from akkordeon.sentinels.loss import BatchLoss, GraphCheck
from akkordeon.sentinels.reader import READ_AHEAD
from akkordeon.sentinels.recipes import Training
from akkordeon.sentinels.training.epoch import Epoch, Flight
from akkordeon.sentinels.training.refusals import Refusals, not_finite, record_of
from akkordeon.sentinels.training.settling import SettlingSentinel

__all__ = ["Trainer"]


class Trainer(SettlingSentinel):
    """The actor of :meth:`Sentinel.train`.

    Args:
        address: its own.
        name: what reports call it.
        row: addresses of the gates, head first.
        reader: address of its reader.
        recipe: the sentinel.
        endless: nobody knows whether its source ends; scores keep no batch beyond a report of progress.
        start: what it goes on from, as it said itself; it stays at rest until it is told to go on.
        saves: somebody may have another go on where it is told of last, if this one is lost.
        schedule: of the network.
    """

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        recipe: Training,
        endless: bool = False,
        start: PlainState | None = None,
        saves: bool = False,
        schedule: Schedule = ASYNC,
    ) -> None:
        super().__init__(address, name, row, reader, recipe, saves, schedule)
        self._recipe = recipe
        self._epoch_of = recipe.scores, endless
        self._places, self._epoch = Places(), Epoch(1, *self._epoch_of)
        self._samples_sent = self._samples_trained = 0
        self._in_all: int | None = None  # batches that it is to send, once that is known
        self._all_sent = self._cut_short = self._reader_asked = False
        self._graph_check, self._refusals = GraphCheck(), Refusals(name, recipe.in_flight)
        self._began_s = self._latest_s = self._epoch_began_s = self._reported_s = 0.0
        if start is not None:
            self._go_on_from(start)
        self._handlers |= {
            Attach: self._attach,
            SourceFailed: self._source_failed,
            Forward: self._came_back,
            Backward: self._trained,
            Refused: self._refused,
            AllRead: self._all_read,
            Restarted: self._restarted,
            Detach: self._detach,
        }

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, message: Attach, now_s: float) -> Iterator[Effect]:
        yield from self._begin(now_s)
        if self._all_sent:
            yield from self._end()
            return
        yield Send(self._reader, Pull(READ_AHEAD * self._in_flight - self.batches.sent % self._in_flight))

    def _begin(self, now_s: float) -> Iterator[Effect]:
        """Count the time from now; of one that goes on, from so many seconds ago."""
        self._latest_s = self._epoch_began_s = self._reported_s = now_s
        self._began_s += now_s
        yield from self._save()
        if self._recipe.seconds is not None and self._in_all is None and not self._all_sent:
            yield After(max(0.0, self._recipe.seconds - (now_s - self._began_s)), Detach(done=True))

    def _source_failed(self, message: SourceFailed, now_s: float) -> Iterator[Effect]:
        if not (self._waiting or self._flights or self._all_sent):
            raise message.error
        yield from self._read(message, now_s)

    def _send(self, now_s: float) -> Iterator[Effect]:
        """Send what may be sent; end when there is nothing left to send and to wait for."""
        if self._rest:
            yield from self._come_to_rest(now_s)
            return
        while self._waiting and not self._all_sent:
            item = self._waiting[0]
            if isinstance(item, EpochEnd):
                self._waiting.popleft()
                self._places.end_epoch()
                yield from self._all_of_epoch_sent(item.last, now_s)
            elif isinstance(item, SourceFailed):
                if not self._flights:  # all that was read before is trained, as in a plain loop
                    self._waiting.popleft()
                    yield Send(self.address, item)
                break
            elif isinstance(item, Item) and len(self._flights) < self._pace.room(self.batches.trained):
                self._waiting.popleft()
                yield from self._launch(item)
                if self._is_last():
                    yield from self._all_of_epoch_sent(True, now_s)
                elif self.batches.sent % self._in_flight == 0:
                    yield Send(self._reader, Pull(self._in_flight))
            else:
                break
        if self._all_sent and not self._flights:
            self._raise_if_too_many()
            yield from self._end()
        elif not self._flights and not self._pace.is_known:
            yield from self._settle()

    def _launch(self, item: Item) -> Iterator[Effect]:
        """Send a batch, or count it where it was trained before."""
        x, size = item.x, samples(item.x)
        if item.source is not None:
            self._places.mark(item.source, [batch.number for batch in self._flights])
        self._places.add(self._numbers, size)
        self._samples_sent += size
        self.batches.sent += 1
        if self._numbers in self._places.known:
            self._count_known(size)
            return
        self._epoch.under_way += 1
        yield Send(self._row[0], Forward(self._number(Flight(item.y, size, self._epoch, x)), x, size))

    def _count_known(self, size: int) -> None:
        """Another has trained the batch of the next number, in whose place this one goes on."""
        self._refusals.remember(self._numbers)
        self._numbers += 1
        self.batches.trained += 1
        self._samples_trained += size
        self._epoch.count_known(size)

    def _is_last(self) -> bool:
        """Whether the batch just sent was the last, whatever else there is to read."""
        return self.batches.sent == self._in_all or self._samples_sent >= (self._recipe.samples or math.inf)

    def _all_of_epoch_sent(self, last: bool, now_s: float) -> Iterator[Effect]:
        epoch, self._epoch = self._epoch, Epoch(self._epoch.number + 1, *self._epoch_of)
        epoch.all_sent, self._all_sent = True, last
        if last and not self._cut_short:
            self._in_all = self.batches.sent
        yield from self._report(epoch, now_s)

    def _come_to_rest(self, now_s: float) -> Iterator[Effect]:
        """With nothing under way, wait for all that was asked for to be read: so it is where one begins."""
        if not (self._is_under_way or self._reader_asked or all(self._rest.values())):
            self._reader_asked = True
            yield Send(self._reader, Locate(self.address))

    def _all_read(self, message: AllRead, now_s: float) -> Iterator[Effect]:
        if self._rest and self._reader_asked:
            yield from self._tell_at_rest(self._state(Locate(self.address, applied=Applied(self._numbers))))
        self._reader_asked = False

    def _state(self, asked: Locate) -> PlainState:
        """What it goes on from, if the weights are those of the batches applied."""
        under_way = {batch.number for batch in self._flights}
        not_done = sorted(under_way)
        if asked.applied is not None:  # else nobody knows: those that are back
            not_done = self._places.not_in(asked.applied, self._numbers, self._refusals)
        batches, samples_of = self.batches, self._places.samples_of
        place = self._places.as_plain(not_done, self._numbers)
        sent, begun = batches.sent - len(not_done), place["position"]["place"][0]
        back, known = set(not_done) - under_way, under_way - set(not_done)
        left = None if self._in_all is None else self._in_all - sent
        trained = sent - batches.refused - batches.lost
        return {
            "role": str(self._role),
            **place,
            "batches": [sent, trained, batches.refused, batches.lost],
            "counted": self._pace.as_plain(trained, in_cut=asked.applied is not None),
            "samples_sent": self._samples_sent - samples_of(not_done),
            "samples_trained": self._samples_trained + samples_of(known) - samples_of(back),
            # One broken off was told of, and goes on; one that is whole will not be told of.
            "epochs": max(self._rounds, self._epoch.number - 1) if left == 0 else begun,
            "epoch": None if not_done else self._epoch.sums(),
            "seconds": self._latest_s - self._began_s,
            "left": left,
        }

    def _go_on_from(self, start: PlainState) -> None:
        """Be where another one was that said this of itself."""
        self._rest[START], self._numbers = True, start["number"]
        self._places = Places.from_plain(start)
        self.batches = BatchCount(*start["batches"])
        self._pace.go_on_from(start.get("counted"))
        self._samples_sent, self._samples_trained = start["samples_sent"], start["samples_trained"]
        self._rounds, left = start["epochs"], start["left"]
        self._in_all, self._all_sent = None if left is None else self.batches.sent + left, left == 0
        self._began_s = -start["seconds"]
        self._epoch = Epoch(self._places.next.epoch + 1, *self._epoch_of)
        if start["epoch"] is not None:
            self._epoch.go_on_from(start["epoch"])

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────

    def _came_back(self, message: Forward, now_s: float) -> Iterator[Effect]:
        """The outputs of a batch: give it its loss and send the gradient back."""
        batch, flight = message.batch, self._flights.get(message.batch)
        if flight is None or flight.turned:
            return
        judged = BatchLoss(message.payload, flight.y, self._recipe.loss)
        self._settles |= not isinstance(judged.value, float)  # gates may refuse its last batches late then
        if isinstance(judged.value, float) and not math.isfinite(judged.value):
            yield from self._count_refused(not_finite(batch, self.name, judged.value), self._row, now_s)
            return
        self._graph_check.look(judged.loss, judged.leaves)
        gradient = judged.gradient()
        flight.x = None
        yield Send(self._row[-1], Backward(batch, gradient))
        shown = judged.outputs() if self._recipe.scores else None
        without_gradients(flight.epoch.board.add, judged.value, shown, judged.targets, flight.samples)

    def _trained(self, message: Backward, now_s: float) -> Iterator[Effect]:
        flight = self._flights.get(message.batch)
        if flight is None or not flight.turned:
            return
        del self._flights[message.batch]
        self._latest_s = now_s
        self.batches.trained += 1
        self._refusals.count_trained()
        self._samples_trained += flight.samples
        epoch = flight.epoch
        epoch.count_trained(flight.samples, message.staleness)
        if epoch.is_over:
            yield from self._report(epoch, now_s)
        elif epoch.is_progress_due(self._recipe.report_every, now_s - self._reported_s):
            yield from self._report_progress(epoch, now_s)
        yield from self._send(now_s)

    def _refused(self, message: Refused, now_s: float) -> Iterator[Effect]:
        flight = self._flights.get(message.batch)
        if message.fault is Fault.LOST:
            if flight is not None:
                yield from self._lose(message.batch.number, self._flights.pop(message.batch), now_s)
                yield from self._save()
                yield from self._to_all(Forget(*message.batch))
                yield from self._send(now_s)
        elif flight is not None:
            until = self._row.index(message.gate) if message.gate in self._row else len(self._row)
            # The gate that refused a forward holds nothing of it; one that refused a backward does.
            yield from self._count_refused(message, self._row[: until + flight.turned], now_s)
        elif self.address != message.batch.sentinel or message.batch.number >= self._numbers:
            yield from self._refuse_message(f"a refusal of {message.batch}, which it never sent")
        elif message.batch.number not in self._refusals:
            yield from self._revoked(message)

    def _revoked(self, why: Refused) -> Iterator[Effect]:
        """A batch came back, but a gate took its update back, or a shard dropped its push: it is refused."""
        self._refusals.add(why, revoked=True)
        self.batches.trained -= 1
        self.batches.refused += 1
        yield from self._tell_refused(why)

    def _count_refused(self, why: Refused, holders: tuple[str, ...], now_s: float) -> Iterator[Effect]:
        """Count a batch as refused and have the gates that hold it forget it."""
        flight = self._flights.pop(why.batch)
        if flight.turned:
            self._pace.lose()
        self._refusals.add(why)
        self.batches.refused += 1
        flight.epoch.count_refused()
        for gate in holders:
            yield Send(gate, Forget(*why.batch))
        yield from self._tell_refused(why)
        yield from self._report(flight.epoch, now_s)
        yield from self._send(now_s)

    def _tell_refused(self, why: Refused) -> Iterator[Effect]:
        yield Report(record_of(self.name, why))
        yield from self._save()
        if why.fault is not Fault.TOO_STALE:
            self._raise_if_too_many()

    def _raise_if_too_many(self) -> None:
        self._refusals.raise_if_too_many(self.batches, self._all_sent and not self._flights)

    def _restarted(self, message: Restarted, now_s: float) -> Iterator[Effect]:
        """Send again what no gate has learned from; the rest is lost, and refused what the gate raised on."""
        self._pace.lose()
        yield from self._settle_again(message.gate)
        yield from self._to_all(ForgetBefore(self.address, self._numbers))
        refused, flights, self._flights = message.refused, self._flights, {}
        for batch, flight in flights.items():
            if refused is not None and batch == refused.batch:
                self._flights[batch] = flight
            elif flight.x is None:
                yield from self._lose(batch.number, flight, now_s)
            else:
                self._places.renumber(batch.number, self._numbers)
                yield Send(self._row[0], Forward(self._number(flight), flight.x, flight.samples))
        yield from self._save()
        if refused is not None and refused.batch.sentinel == self.address:
            yield from self._refused(refused, now_s)
        yield from self._send(now_s)

    def _lose(self, number: int, flight: Flight, now_s: float) -> Iterator[Effect]:
        """Count a batch as lost; some gates may have learned from it."""
        self.batches.lost += 1
        self._pace.lose()
        self._refusals.remember(number)
        flight.epoch.count_lost()
        yield from self._report(flight.epoch, now_s)

    # ── ending and telling ───────────────────────────────────────────────────────────────────────────

    def _report(self, epoch: Epoch, now_s: float) -> Iterator[Effect]:
        if not epoch.is_over or epoch.is_empty:
            return
        seconds, self._epoch_began_s, self._reported_s = now_s - self._epoch_began_s, now_s, now_s
        self._rounds += 1
        yield Report(epoch.done(self.name, seconds, self.batches))
        yield from self._save()

    def _report_progress(self, epoch: Epoch, now_s: float) -> Iterator[Effect]:
        seconds, self._reported_s = now_s - self._reported_s, now_s
        yield Report(epoch.progress(self.name, seconds))
        yield from self._save()

    def _samples(self) -> tuple[int, int]:
        return self._samples_trained, self._epoch.samples

    def _detach(self, message: Detach, now_s: float) -> Iterator[Effect]:
        if not self._all_sent:
            self._cut_short = True
            if message.done:
                self._in_all = self.batches.sent
            yield from self._all_of_epoch_sent(True, now_s)
        if message.drop:
            yield from self._drop()
        if not self._flights:
            yield from self._end()

    def _drop(self) -> Iterator[Effect]:
        if self._flights:
            self._cut_short = True
            self.batches.lost += len(self._flights)
            self._refusals.remember(*(batch.number for batch in self._flights))
            self._flights.clear()
            yield from self._to_all(Forget(self.address))

    def _end(self) -> Iterator[Effect]:
        """End; gates first make an update of what they gathered, and refuse what they do late."""
        yield from self._settle() if self._settles else self._end_now()

    def _all_settled(self, now_s: float) -> Iterator[Effect]:
        if self._all_sent and not self._flights:
            self._raise_if_too_many()
            yield from self._end_now()
        else:
            yield from self._send(now_s)

    def _end_now(self) -> Iterator[Effect]:
        yield from self._say_end(cut_short=self._cut_short)
        yield Stop()

    def last_words(self) -> Iterator[Effect]:
        """Leave nothing behind in the gates, and say what was lost."""
        self._cut_short = self._cut_short or not self._all_sent
        yield from self._drop()
        yield from self._say_end(cut_short=self._cut_short)
