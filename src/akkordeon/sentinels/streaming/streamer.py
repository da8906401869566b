"""A sentinel that learns from a stream: it predicts each example before it learns from it.

    Item ─────────▶ Cut ─▶ Evaluate ─▶ outputs ─┬─▶ scores, [ready] ─▶ Forward … as a trainer's
    Question ─────▶ Cut ─▶ Evaluate ─▶ outputs ─┤
    Answer, or the time of a label ─────────────┘

What was labelled and predicted is trained before another example is predicted; so with one in flight all is
as in a plain loop. The source is asked for no more than may be under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from akkordeon.core.actor import After, Effect, Report, Send
from akkordeon.core.checkpoint_messages import AllRead, Locate
from akkordeon.core.messages import Attach, Backward, EpochEnd, Forward, Item, Pull, Refused, SourceFailed
from akkordeon.core.payload import Payload, samples
from akkordeon.core.plain_state import Applied, PlainState
from akkordeon.core.streams.messages import Acknowledge, Answer, Event, Kept, Key, Labelled, Question, Record
from akkordeon.core.streams.reports import StreamReport
from akkordeon.data.position import Place, SourcePosition
from akkordeon.sentinels.recipes import Streaming
from akkordeon.sentinels.streaming.events import as_plain, from_plain
from akkordeon.sentinels.streaming.predicting import PredictingTrainer
from akkordeon.sentinels.streaming.receipts import Receipts
from akkordeon.sentinels.streaming.shadow import ShadowRow
from akkordeon.sentinels.streaming.unlabelled import Example, Unlabelled, delay_of
from akkordeon.sentinels.training.epoch import Epoch, Flight

__all__ = ["Streamer"]

RECENT = 64
"""A checkpoint has the data of what was trained after its cut, of so many times ``in_flight`` at most."""

TOLD_S = 10.0
"""How long the end waits for the source to be told."""


@dataclass(slots=True)
class _StreamFlight(Flight):
    """A training batch in flight, and the example that it is."""

    example: Example


class Streamer(PredictingTrainer):
    """The actor of :meth:`Sentinel.stream`.

    Args:
        address: its own.
        name: what reports call it.
        row: addresses of the gates, head first.
        reader: address of its reader.
        recipe: the sentinel.
        start: what it goes on from, as it said itself; it stays at rest until it is told to go on.
        saves: somebody may have another go on where it is told of last, if this one is lost.
        acknowledges: whether its source wants to know what it need not give again.
        make_shadow: makes gates that are as the recipe of the row has them.
    """

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        recipe: Streaming,
        start: PlainState | None = None,
        saves: bool = False,
        acknowledges: bool = False,
        make_shadow: Callable[[], ShadowRow] | None = None,
    ) -> None:
        super().__init__(address, name, row, reader, recipe, saves, make_shadow)
        self._asked = 0  # of the reader, and not read yet
        self._read_so_far = self._handled = 0  # records
        self._receipts = Receipts(acknowledges)
        self._unheard = False  # something was acknowledged, and the source may not know yet
        self._asked_last = False
        self._again: dict[Key, list[int]] = {}  # records that are of no use if one before is done with
        self._source_state: PlainState | None = None
        self._source_over = False
        self._examples = 0  # questions, small batches each
        self._time = 0  # in examples
        self._unlabelled = Unlabelled(recipe.max_waiting)
        self._recent: deque[tuple[int, Example]] = deque(maxlen=RECENT * recipe.in_flight)
        if start is not None:
            self._go_on_from(start)
        self._handlers |= {Labelled: self._read, Question: self._read, Answer: self._read, Kept: self._kept}

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, message: Attach, now_s: float) -> Iterator[Effect]:
        yield from self._begin(now_s)
        yield from self._send(now_s)

    def _read(self, message: Event, now_s: float) -> Iterator[Effect]:
        self._asked = max(0, self._asked - 1)
        if isinstance(message, Record):
            self._read_so_far += 1
            self._source_state = message.source
            self._receipts.read(self._read_so_far, message.source)
        yield from super()._read(message, now_s)

    def _send(self, now_s: float) -> Iterator[Effect]:
        """Learn from what may be learned from, then predict what may be predicted, then read on."""
        if self._rest:
            yield from self._come_to_rest(now_s)
            return
        if self._successors:
            yield from self._hand_over()
            return
        yield from self._learn(now_s)
        while self._waiting and not self._all_sent and self._may_handle(self._waiting[0]):
            yield from self._handle(self._waiting.popleft())
            yield from self._learn(now_s)
        yield from self._predict_next()
        if self._source_over and not (self._all_sent or self._predicting or self._to_predict or self._ready):
            yield from self._all_of_epoch_sent(True, now_s)
        if self._all_sent and not self._flights:
            self._raise_if_too_many()
            yield from self._end()
        elif not (self._all_sent or self._source_over):
            yield from self._pull()

    def _pull(self) -> Iterator[Effect]:
        """Ask for as much as may be under way."""
        room = self._in_flight - self._under_way - len(self._waiting) - self._asked
        if room > 0:
            self._asked += room
            yield Send(self._reader, Pull(room))

    @property
    def _under_way(self) -> int:
        """What was read, and is neither trained nor waiting for its label."""
        return self._at_the_gates + len(self._to_predict) + len(self._ready)

    def _may_handle(self, event: Event) -> bool:
        """Whether it is time for what was read: a question needs room, a failure comes after all else."""
        if isinstance(event, SourceFailed):
            return not self._under_way
        return not isinstance(event, Item | Labelled | Question) or self._under_way < self._in_flight

    def _handle(self, event: Event) -> Iterator[Effect]:
        self._handled += isinstance(event, Record)
        if isinstance(event, Labelled | Question) and not self._unlabelled.is_new(event.key):
            yield from self._came_again(event.key)
        elif isinstance(event, Item | Labelled):
            for example in self._unlabelled.due(self._time):
                yield from self._labelled(example)
            yield from self._take_pair(event)
        elif isinstance(event, Question):
            yield from self._take_question(event)
        elif isinstance(event, Answer):
            found = self._unlabelled.answer(event.key, event.y)
            if found is None:
                yield from self._acknowledge(self._receipts.done([self._handled]))
            else:
                found.records.append(self._handled)
                yield from self._labelled(found)
        elif isinstance(event, EpochEnd):
            self._source_over = True
            for example in self._unlabelled.due(None):
                yield from self._labelled(example)
            for example in self._unlabelled.drop_all():
                yield from self._done(example)
        else:
            yield Send(self.address, event)

    def _source_failed(self, message: SourceFailed, now_s: float) -> Iterator[Effect]:
        if self._waiting or self._under_way:
            yield from self._read(message, now_s)
        elif not self._all_sent:
            raise message.error

    def _take_pair(self, item: Item | Labelled) -> Iterator[Effect]:
        """An example whose label came with it, and is used when it is due."""
        example = self._example(item.x)
        example.y = item.y
        if isinstance(item, Labelled):
            example.key = item.key
            self._unlabelled.came(item.key)
        if self._recipe.delay is None:
            example.is_labelled = True
        else:
            delay = delay_of(self._recipe.delay, item)
            example.due = None if delay is None else self._time - samples(item.x) + delay
            yield from self._wait_for_label(example)

    def _take_question(self, question: Question) -> Iterator[Effect]:
        example = self._example(question.x)
        example.key = question.key
        yield from self._wait_for_label(example)

    def _came_again(self, key: Key) -> Iterator[Effect]:
        """A record under a key that is known: it is done with when that is."""
        if self._unlabelled.is_done(key):
            yield from self._acknowledge(self._receipts.done([self._handled]))
        else:
            self._again.setdefault(key, []).append(self._handled)

    def _example(self, x: Payload) -> Example:
        example = Example(self._examples, x, records=[self._handled])
        self._examples += 1
        self._time += samples(x)
        self._to_predict.append(example)
        return example

    def _wait_for_label(self, example: Example) -> Iterator[Effect]:
        dropped = self._unlabelled.add(example)
        if dropped is not None:
            yield from self._done(dropped)

    def _done(self, example: Example, batch: int | None = None) -> Iterator[Effect]:
        """An example was trained in a batch, or nothing will come of it: it need not be given again."""
        records = example.records
        if example.key is not None:
            self._unlabelled.done(example.key)
            records = records + self._again.pop(example.key, [])
        yield from self._acknowledge(self._receipts.done(records, batch))

    def _acknowledge(self, positions: Sequence[PlainState]) -> Iterator[Effect]:
        if positions:
            self._unheard = True
            yield Send(self._reader, Acknowledge(tuple(positions)))

    def _kept(self, message: Kept, now_s: float) -> Iterator[Effect]:
        until = self._read_so_far if message.until is None else message.until
        yield from self._acknowledge(self._receipts.kept(until))

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────

    def _learn(self, now_s: float) -> Iterator[Effect]:
        while self._ready and self._at_the_gates < self._in_flight and not self._all_sent:
            yield from self._learn_from(self._ready.popleft())
            if self._is_last():
                yield from self._all_of_epoch_sent(True, now_s)

    def _learn_from(self, example: Example) -> Iterator[Effect]:
        size = samples(example.x)
        self._samples_sent += size
        self.batches.sent += 1
        if self._numbers in self._places.known:
            self._count_known(size)
            yield from self._done(example)
            return
        batch = self._number(_StreamFlight(example.y, size, self._epoch, example.x, example))
        self._epoch.under_way += 1
        yield Send(self._row[0], Forward(batch, example.x, size))

    def _new_epoch(self, number: int) -> Epoch:
        return Epoch(number, {}, endless=True)  # what is scored are predictions

    def _trained(self, message: Backward, now_s: float) -> Iterator[Effect]:
        flight = self._flights.get(message.batch)
        if isinstance(flight, _StreamFlight) and flight.turned:
            self._recent.append((message.batch.number, flight.example))
            yield from self._done(flight.example, message.batch.number)
        yield from super()._trained(message, now_s)

    def _count_refused(self, why: Refused, holders: tuple[str, ...], now_s: float) -> Iterator[Effect]:
        flight = self._flights[why.batch]
        assert isinstance(flight, _StreamFlight), "it sends no others"
        yield from self._done(flight.example)
        yield from super()._count_refused(why, holders, now_s)

    def _lose(self, number: int, flight: Flight, now_s: float) -> Iterator[Effect]:
        assert isinstance(flight, _StreamFlight), "it sends no others"
        self._receipts.lost(flight.example.records)
        yield from super()._lose(number, flight, now_s)

    def _drop(self) -> Iterator[Effect]:
        for flight in self._flights.values():
            assert isinstance(flight, _StreamFlight), "it sends no others"
            self._receipts.lost(flight.example.records)
        yield from super()._drop()

    # ── ending, telling, and going on ────────────────────────────────────────────────────────────────

    def _end(self) -> Iterator[Effect]:
        """End once the source was told of all that it need not give again, if it does not stall."""
        if not self._unheard:
            yield from super()._end()
        elif not self._asked_last:
            self._asked_last = True
            yield Send(self._reader, Locate(self.address))
            yield After(TOLD_S, AllRead())

    def _all_read(self, message: AllRead, now_s: float) -> Iterator[Effect]:
        self._unheard = self._asked_last = False
        yield from self._send(now_s)

    def _say_end(self, result: Any = None, cut_short: bool = False) -> Iterator[Effect]:
        if self._predicting:  # it was detached
            yield from self._drop()
        yield Report(self._stream_report())
        yield from super()._say_end(result, cut_short)

    def _report_progress(self, epoch: Epoch, now_s: float) -> Iterator[Effect]:
        yield from super()._report_progress(epoch, now_s)
        yield Report(self._stream_report())

    def _stream_report(self) -> StreamReport:
        done = self._prequential
        return StreamReport(
            sentinel=self.name,
            overall=done.overall(),
            window=done.window(),
            fading=done.fading(),
            examples=done.examples,
            unscored=done.unscored,
            labels=self._unlabelled.counted(),
            alarms=() if self._drift is None else self._drift.alarms,
            seconds=self._latest_s - self._began_s,
        )

    def _locate(self, message: Locate, now_s: float) -> Iterator[Effect]:
        """Whoever asks takes a checkpoint; what is done with after it is not in it."""
        self._receipts.wait_for_checkpoints()
        if (applied := message.applied) is not None:
            recent = {number for number, _ in self._recent}
            self._receipts.leave_out(lambda batch: batch not in applied and batch not in recent)
        yield from super()._locate(message, now_s)

    def _come_to_rest(self, now_s: float) -> Iterator[Effect]:
        """With nothing at the gates; a source that stalls keeps nobody waiting."""
        if not (self._is_under_way or all(self._rest.values())):
            yield from self._tell_at_rest(self._state(Locate(self.address)))

    def _state(self, asked: Locate) -> PlainState:
        """Where it is, with all that was read and is not in the weights: nothing is read again."""
        under_way = [(b.number, f.example) for b, f in self._flights.items() if isinstance(f, _StreamFlight)]
        applied = asked.applied or Applied()  # nobody knows: those that are back
        trained_after = [] if asked.applied is None else self._trained_after(asked.applied)
        in_weights = [example for number, example in under_way if number in applied]
        again = trained_after + [each for each in under_way if each[0] not in applied]
        numbers, not_done = [number for number, _ in again], [example for _, example in again]
        trained_after_cut = [example for _, example in trained_after]
        count, sent = self.batches, self.batches.sent - len(not_done)
        place = Place(0, self._read_so_far)
        source = self._source_state
        return {
            "role": str(self._role),
            "number": self._numbers,
            "again": numbers,
            "known": self._places.known_after(numbers, self._numbers),
            "position": SourcePosition(place).as_plain(),
            "source": None if source is None else {"place": list(place), "state": source},
            "batches": [sent, sent - count.refused - count.lost, count.refused, count.lost],
            "samples_sent": self._samples_sent - _samples(not_done),
            "samples_trained": self._samples_trained + _samples(in_weights) - _samples(trained_after_cut),
            "epochs": self._rounds,
            "epoch": None if not_done else self._epoch.sums(),
            "seconds": self._latest_s - self._began_s,
            "left": None if self._in_all is None else self._in_all - sent,
            "stream": {
                "over": self._source_over,
                "examples": self._examples,
                "time": self._time,
                "cuts": self._cuts,
                "scores": self._prequential.state(),
                "drift": None if self._drift is None else self._drift.state(),
                "receipts": self._receipts.state(),
                "labels": self._unlabelled.state(),
                "to_predict": [each.as_plain() for each in self._not_predicted() if each.is_labelled],
                "to_train": [each.as_plain() for each in (*not_done, *self._ready)],
                "events": [as_plain(event) for event in self._waiting if not isinstance(event, SourceFailed)],
            },
        }

    def _trained_after(self, applied: Applied) -> list[tuple[int, Example]]:
        """Examples that came back, but are not in these weights, with their numbers."""
        return [(n, e) for n, e in self._recent if n not in applied and n not in self._refusals]

    def _go_on_from(self, start: PlainState) -> None:
        super()._go_on_from(start)
        stream = start.get("stream")
        if stream is None:  # it had no time to say where it was
            return
        self._read_so_far = start["position"]["place"][1]
        self._source_state = None if start["source"] is None else start["source"]["state"]
        self._source_over, self._examples = stream["over"], stream["examples"]
        self._time, self._cuts = stream["time"], stream["cuts"]
        self._prequential.go_on_from(stream["scores"])
        if self._drift is not None and stream.get("drift") is not None:
            self._drift.go_on_from(stream["drift"])
        self._receipts.go_on_from(stream["receipts"])
        self._to_predict.extend(self._unlabelled.go_on_from(stream["labels"]))
        self._to_predict.extend(map(Example.from_plain, stream["to_predict"]))
        self._ready.extend(map(Example.from_plain, stream["to_train"]))
        self._waiting.extend(map(from_plain, stream["events"]))
        self._handled = self._read_so_far - sum(isinstance(event, Record) for event in self._waiting)


def _samples(examples: Iterable[Example]) -> int:
    return sum(samples(example.x) for example in examples)
