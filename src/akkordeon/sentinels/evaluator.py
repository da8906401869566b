"""A sentinel that works on cuts: it validates, tests, predicts, or fetches the weights.

    Due ─▶ Cut ─▶ …row, tail to head… ─▶ Cut ─▶ Evaluate ─▶ …row… ─▶ Evaluate ─▶ loss and scores
                                                                          │ all back
                                    Release to every gate ◀─ [Export if best] ◀─┘

One round at a time; what falls due meanwhile makes one round more, not many. A cut of the versions that the
round before had is released at once: that round would only come again. When a gate was made anew, which knows
of no cut, the round under way is begun again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.actor import After, Effect, Report, Send, Stop
from akkordeon.core.checkpoint_messages import Locate
from akkordeon.core.errors import DataError
from akkordeon.core.messages import (
    Attach,
    Cut,
    CutId,
    Detach,
    Due,
    Evaluate,
    Export,
    Exported,
    Forget,
    Item,
    Pull,
    Refused,
    Release,
    Scored,
    SourceFailed,
    Tick,
    Watch,
)
from akkordeon.core.numerics.forms import form
from akkordeon.core.numerics.later import now_or_later
from akkordeon.core.payload import Payload, rebuilt, samples
from akkordeon.core.plain_state import CutStates, PlainState
from akkordeon.core.recovery.messages import ForgetBefore, Restarted, Rewind, Rewound
from akkordeon.core.reports import BestKept, LastKept, RoundDone
from akkordeon.core.streams.messages import Event
from akkordeon.sentinels.base import START, SentinelActor
from akkordeon.sentinels.loss import LossInputs, loss_of, to_targets_device
from akkordeon.sentinels.recipes import Evaluation
from akkordeon.sentinels.roles import EXPORT, PREDICT
from akkordeon.sentinels.scores import ScoreBoard

__all__ = ["Evaluator"]

IN_FLIGHT = 2
"""Evaluation batches under way at once, if the recipe does not say."""


class Evaluator(SentinelActor[tuple[Any, int]]):
    """The actor of :meth:`Sentinel.validate`, ``test`` and ``predict``, and of ``session.module()``.

    Args:
        address: its own.
        name: what reports call it.
        row: addresses of the gates, head first.
        reader: address of its reader.
        recipe: the sentinel; one to export only fetches the weights of a cut.
        start: what it goes on from, as it said itself; it stays at rest until it is told to go on.
        saves: somebody may have another go on where it is told of last, if this one is lost.
    """

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        recipe: Evaluation,
        start: PlainState | None = None,
        saves: bool = False,
    ) -> None:
        super().__init__(address, name, row, reader, recipe.role, recipe.in_flight or IN_FLIGHT, saves)
        self._recipe = recipe
        self._cuts = 0
        self._versions: tuple[int, ...] = ()  # of the latest round, tail first
        self._began_s = 0.0
        self._board = ScoreBoard(recipe.scores)
        self._outputs: dict[int, Payload] = {}
        self._joined: Any = None
        self._states: dict[str, dict[str, Tensor]] = {}
        self._due = None if recipe.role.repeats else Due()  # one more round after this one
        self._ending = not recipe.role.repeats
        self._best: float | None = None
        self._is_best = False  # the round under way
        self._without_better = 0
        self._best_before: tuple[float | None, int] = (None, 0)  # these two, when the round began
        self._is_reading = False  # whether anything was asked for in the round under way
        self._rewinds = 0  # not answered yet: what comes meanwhile is of a round that was given up
        if start is not None:
            self._go_on_from(start)
        self._handlers |= {
            Attach: self._attach,
            Tick: self._tick,
            Due: self._round_due,
            Cut: self._pinned,
            SourceFailed: self._source_failed,
            Evaluate: self._came_back,
            Exported: self._exported,
            Refused: self._refused,
            Restarted: self._restarted,
            Rewound: self._rewound,
            Detach: self._detach,
        }

    # ── when ─────────────────────────────────────────────────────────────────────────────────────────

    def _attach(self, message: Attach, now_s: float) -> Iterator[Effect]:
        if not self._recipe.role.repeats:
            yield from self._go_on(now_s)
        if self._recipe.every_s is not None:
            yield After(self._recipe.every_s, Tick())
        if self._recipe.every_updates is not None:
            yield Send(self._row[0], Watch(self.address, self._recipe.every_updates))

    def _tick(self, message: Tick, now_s: float) -> Iterator[Effect]:
        if self._recipe.every_s is None:
            yield from self._refuse_message("a Tick, though its rounds do not come by the clock")
            return
        yield After(self._recipe.every_s, Tick())
        yield from self._round_due(Due(), now_s)

    def _round_due(self, message: Due, now_s: float) -> Iterator[Effect]:
        if self._cut is None and not self._rest:
            self._ending = self._ending or message.last
            yield from self._begin(now_s)
        elif not self._ending and (self._due is None or message.last):
            self._due = message
            yield from self._save_round()

    # ── a round ──────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, now_s: float) -> Iterator[Effect]:
        self._cut = CutId(self.address, self._cuts)
        self._cuts += 1
        self._began_s = now_s
        self._is_reading = False
        self._best_before = self._best, self._without_better
        yield from self._save_round()
        yield Send(self._row[-1], Cut(self._cut, averaged=self._recipe.ema))

    def _pinned(self, message: Cut, now_s: float) -> Iterator[Effect]:
        if message.cut != self._cut:  # it was given up
            return
        if not message.versions:
            yield from self._refuse_message(f"cut {message.cut.number}, which no gate has pinned")
            return
        if message.versions == self._versions:
            yield from self._release()
            yield from self._go_on(now_s)
            return
        self._versions = message.versions
        self._board = ScoreBoard(self._recipe.scores)
        if self._recipe.role == EXPORT:
            yield from self._to_all(Export(message.cut))
            return
        self._is_reading = True
        yield Send(self._reader, Pull(self._in_flight, self._rounds))

    def _read(self, message: Event, now_s: float) -> Iterator[Effect]:
        if not self._rewinds:
            yield from super()._read(message, now_s)

    def _source_failed(self, message: SourceFailed, now_s: float) -> Iterator[Effect]:
        raise message.error

    def _send(self, now_s: float) -> Iterator[Effect]:
        """Send what may be sent; end the round when all of it is back."""
        while self._waiting and self._cut is not None:
            item = self._waiting[0]
            if not isinstance(item, Item):  # the end of the source: one that fails is never waiting
                if not self._flights:
                    self._waiting.popleft()
                    yield from self._all_back(now_s)
                return
            if len(self._flights) >= self._in_flight:
                return
            self._waiting.popleft()
            batch = self._number((item.y, samples(item.x)))
            yield Send(self._row[0], Evaluate(batch, item.x, self._cut))
            yield Send(self._reader, Pull(1, self._rounds))

    def _came_back(self, message: Evaluate, now_s: float) -> Iterator[Effect]:
        flight = self._flights.pop(message.batch, None)
        if flight is None:
            return
        y, size = flight
        if self._recipe.loss is None:
            self._outputs[message.batch.number] = message.payload
        else:
            targets = to_targets_device(y, message.payload)
            with torch.no_grad():
                given = LossInputs(message.payload, self._recipe.loss)
                value = now_or_later(loss_of(self._recipe.loss, given.payload, targets))
                self._board.add(value, given.unchanged(), targets, size)
        yield from self._send(now_s)

    def _refused(self, message: Refused, now_s: float) -> Iterator[Effect]:
        if message.batch not in self._flights:
            yield from self._refuse_message(f"a refusal of {message.batch}, which is not under way")
            return
        raise DataError(f"{message.gate} refused it: {message.reason}") from message.error

    def _all_back(self, now_s: float) -> Iterator[Effect]:
        if self._recipe.role == PREDICT:
            self._joined = _concatenated([self._outputs[number] for number in sorted(self._outputs)])
        self._is_best = self._improved()
        if self._is_best or self._recipe.keep_last:
            yield from self._to_all(Export(self._current))
        else:
            yield from self._end_round(now_s)

    def _improved(self) -> bool:
        """Whether this round is the best so far, where that is asked; keeps the count of patience."""
        best = self._recipe.best
        if best is None:
            return False
        value = self._value(best.score)
        if not best.is_better(value, self._best):
            self._without_better += 1
            return False
        self._best, self._without_better = value, 0
        return True

    def _value(self, score: str) -> float:
        return self._board.loss if score == "loss" else self._board.scores()[score]

    def _exported(self, message: Exported, now_s: float) -> Iterator[Effect]:
        if message.cut != self._cut or message.gate not in self._row:
            return
        self._states[message.gate] = message.state
        if len(self._states) == len(self._row):
            yield from self._kept()
            yield from self._end_round(now_s, self._is_best)

    def _kept(self) -> Iterator[Effect]:
        """Report the weights of a validation round; those of an export are its result."""
        if self._recipe.role == EXPORT:
            return
        states, self._states = self._states, {}
        if self._is_best and self._best is not None:
            yield Report(BestKept(self.name, self._rounds + 1, self._best, states))
        if self._recipe.keep_last:
            yield Report(LastKept(self.name, self._rounds + 1, states))

    def _end_round(self, now_s: float, best: bool = False) -> Iterator[Effect]:
        self._rounds += 1
        yield from self._release()
        if self._recipe.loss is not None:
            yield Report(self._round_done(now_s, best))
        if self._recipe.schedule_by is not None:
            yield from self._to_all(Scored(self._value(self._recipe.schedule_by)))
        yield from self._go_on(now_s)

    def _release(self) -> Iterator[Effect]:
        yield from self._to_all(Release(self._current))
        self._cut = None
        yield from self._save_round()

    def _save_round(self) -> Iterator[Effect]:
        yield from self._save(last=self._ending or (self._due is not None and self._due.last))

    def _go_on(self, now_s: float) -> Iterator[Effect]:
        """Begin the round that fell due meanwhile, or end if it is time."""
        if self._rest:
            yield from self._come_to_rest(now_s)
        elif self._due is not None:
            due, self._due = self._due, None
            yield from self._round_due(due, now_s)
        elif self._ending:
            yield from self._end()

    # ── coming to rest, and going on from there ──────────────────────────────────────────────────────

    def _come_to_rest(self, now_s: float) -> Iterator[Effect]:
        if self._cut is None:
            yield from self._tell_at_rest(self._state(Locate(self.address)))

    def _begin_again(self, now_s: float) -> Iterator[Effect]:
        if self._cut is None:
            yield from self._go_on(now_s)

    def _state(self, asked: Locate) -> PlainState:
        seen = self._versions == asked.versions  # older weights do not come again, and newer are others then
        return {
            "role": str(self._role),
            "rounds": self._rounds,
            "cuts": self._cuts,
            "versions": list(self._versions) if seen else [],
            "best": self._best,
            "without_better": self._without_better,
            "due": self._due is not None or self._cut is not None,
            "last": self._due is not None and self._due.last,
        }

    def _go_on_from(self, start: PlainState) -> None:
        self._rest[START] = True
        self._rounds, self._cuts = start["rounds"], start["cuts"]
        self._versions = tuple(start["versions"])
        self._best, self._without_better = start["best"], start["without_better"]
        self._due = Due(start["last"]) if start["due"] else None

    def _round_done(self, now_s: float, best: bool) -> RoundDone:
        patience = self._recipe.best.patience if self._recipe.best else None
        return RoundDone(
            sentinel=self.name,
            role=str(self._recipe.role),
            round=self._rounds,
            loss=self._board.loss,
            scores=self._board.scores(),
            samples=self._board.samples,
            seconds=now_s - self._began_s,
            version=self._versions[-1],
            best=best,
            stop_training=patience is not None and self._without_better >= patience,
        )

    @property
    def _current(self) -> CutId:
        assert self._cut is not None, "only called during a round"
        return self._cut

    # ── a gate that was made anew ────────────────────────────────────────────────────────────────────

    def _restarted(self, message: Restarted, now_s: float) -> Iterator[Effect]:
        """Watch the first gate again, and begin a round under way anew, with a cut of its own."""
        self._versions = ()
        if message.gate == self._row[0] and self._recipe.every_updates is not None:
            yield Send(self._row[0], Watch(self.address, self._recipe.every_updates))
        yield from self._to_all(ForgetBefore(self.address, self._cuts))
        if self._cut is None:
            return
        self._flights.clear()
        self._waiting.clear()
        self._outputs.clear()
        self._states.clear()
        self._best, self._without_better = self._best_before
        if self._is_reading:
            self._rewinds += 1
            yield Send(self._reader, Rewind(self._rounds))
        yield from self._begin(now_s)

    def _rewound(self, message: Rewound, now_s: float) -> Iterator[Effect]:
        self._rewinds -= 1
        yield from ()

    # ── ending and telling ───────────────────────────────────────────────────────────────────────────

    def _detach(self, message: Detach, now_s: float) -> Iterator[Effect]:
        """End; a round under way is finished first, unless it is to be dropped."""
        self._ending, self._due = True, None
        if self._cut is None or message.drop:
            yield from self._end()

    def _end(self) -> Iterator[Effect]:
        yield from self.last_words()
        yield Stop()

    def last_words(self) -> Iterator[Effect]:
        """Leave no pin and no watch behind, and hand over the result."""
        if self._recipe.every_updates is not None:
            yield Send(self._row[0], Watch(self.address, 0))
        whole = self._cut is None
        if not whole:
            yield from self._to_all(Forget(self.address))
        yield from self._say_end(self._result() if whole else None)

    def _result(self) -> Any:
        return CutStates(self._states, self._versions) if self._recipe.role == EXPORT else self._joined

    def _samples(self) -> tuple[int, int]:
        return self._board.samples, self._board.samples


def _concatenated(outputs: list[Any]) -> Any:
    """The outputs of all batches as one payload of the same form."""
    if not outputs:
        return None
    first = outputs[0]
    if isinstance(first, Tensor):
        try:
            return torch.cat([out if out.dim() else out[None] for out in outputs])
        except RuntimeError:
            forms = " and ".join(sorted({form(out) for out in outputs})[:3])
            raise DataError(f"the outputs of its batches differ and cannot be joined: {forms}") from None
    if first is None:
        return None
    names = first if isinstance(first, dict) else range(len(first))
    return rebuilt(first, [_concatenated([out[name] for out in outputs]) for name in names])
