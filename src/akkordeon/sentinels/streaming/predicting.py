"""A trainer that predicts its examples before it learns from them, and scores the predictions.

    [to predict] ─▶ Cut ─▶ …row… ─▶ Cut ─▶ Evaluate ─▶ …row… ─▶ Evaluate ─┬─▶ scores, [ready] ─▶ Forward …
                                                            its label ────┘

One prediction is one evaluation, on a cut of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from akkordeon.core.actor import Effect, Report, Send
from akkordeon.core.messages import Batch, Cut, CutId, Evaluate, Forget, Refused, Release
from akkordeon.core.payload import Payload, samples
from akkordeon.core.plain_state import StageState
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.streams.messages import TakeOver
from akkordeon.sentinels.loss import LossInputs, loss_of, to_targets_device
from akkordeon.sentinels.recipes import Streaming
from akkordeon.sentinels.scores import StreamingScore, numbers_of
from akkordeon.sentinels.streaming.drift_watch import DriftWatch
from akkordeon.sentinels.streaming.prequential import Prequential
from akkordeon.sentinels.streaming.shadow import ShadowRow, Trial
from akkordeon.sentinels.streaming.unlabelled import Example
from akkordeon.sentinels.training.trainer import Trainer

__all__ = ["PredictingTrainer"]

PREDICTIONS = 2**62
"""Predictions are numbered from here, and training batches from 0: a refusal tells nothing but the number."""

AT_ONCE_MAX = 8
"""Predictions under way at once; each has a cut of its own, of which gates keep a few for one sentinel."""


class PredictingTrainer(Trainer):
    """What a :class:`Streamer <akkordeon.sentinels.streaming.streamer.Streamer>` has of this.

    Args:
        address: its own.
        name: what reports call it.
        row: addresses of the gates, head first.
        reader: address of its reader.
        recipe: the sentinel.
        saves: it tells now and then where it is.
        make_shadow: makes gates that are as the recipe of the row has them.
    """

    _recipe: Streaming

    def __init__(
        self,
        address: str,
        name: str,
        row: tuple[str, ...],
        reader: str,
        recipe: Streaming,
        saves: bool = False,
        make_shadow: Callable[[], ShadowRow] | None = None,
    ) -> None:
        super().__init__(address, name, row, reader, recipe, endless=True, saves=saves)
        self._to_predict: deque[Example] = deque()
        self._predicting: dict[int, Example] = {}  # by the number of the cut
        self._cuts = 0
        self._ready: deque[Example] = deque()  # predicted and labelled
        self._prequential = Prequential(recipe.window, recipe.fading)
        self._drift = None if recipe.drift is None else DriftWatch(name, recipe.drift)
        self._make_shadow = make_shadow
        self._trial: Trial | None = None
        self._successors: dict[str, StageState] = {}  # what the gates are to go on from
        self._is_handing_over = False
        self._handlers |= {Cut: self._pinned, Evaluate: self._predicted, TakeOver: self._taken_over}

    @property
    def _at_the_gates(self) -> int:
        return len(self._flights) + len(self._predicting)

    @property
    def _is_under_way(self) -> bool:
        return self._at_the_gates > 0 or self._is_handing_over

    def _not_predicted(self) -> tuple[Example, ...]:
        return (*self._predicting.values(), *self._to_predict)

    def _predict_next(self) -> Iterator[Effect]:
        while self._to_predict and self._at_the_gates < self._in_flight and not self._all_sent:
            if len(self._predicting) >= AT_ONCE_MAX:
                return
            yield self._predict(self._to_predict.popleft())

    def _predict(self, example: Example) -> Effect:
        cut = CutId(self.address, self._cuts)
        self._cuts += 1
        self._predicting[cut.number] = example
        return Send(self._row[-1], Cut(cut))

    def _pinned(self, message: Cut, now_s: float) -> Iterator[Effect]:
        cut = message.cut
        if not message.versions:
            yield from self._refuse_message(f"cut {cut.number}, which no gate has pinned")
        elif cut.asker == self.address and cut.number in self._predicting:
            batch = Batch(self.address, PREDICTIONS + cut.number)
            yield Send(self._row[0], Evaluate(batch, self._predicting[cut.number].x, cut))

    def _predicted(self, message: Evaluate, now_s: float) -> Iterator[Effect]:
        yield from self._has_predicted(message.batch.number - PREDICTIONS, message.payload, now_s)

    def _refused(self, message: Refused, now_s: float) -> Iterator[Effect]:
        """A prediction that is refused is not scored; its training will be refused likewise, and counted."""
        if message.batch.number < PREDICTIONS:
            yield from super()._refused(message, now_s)
        else:
            yield from self._has_predicted(message.batch.number - PREDICTIONS, None, now_s)

    def _has_predicted(self, number: int, outputs: Payload | None, now_s: float) -> Iterator[Effect]:
        example = self._predicting.pop(number, None)
        if example is None:
            return
        yield from self._to_all(Release(CutId(self.address, number)))
        example.is_predicted, example.outputs = True, outputs
        if example.is_labelled:
            yield from self._labelled(example)
        yield from self._send(now_s)

    def _labelled(self, example: Example) -> Iterator[Effect]:
        """Its label is there: once it is predicted it can be scored and learned from."""
        if example.is_predicted:
            yield from self._score(example)
            self._ready.append(example)

    def _score(self, example: Example) -> Iterator[Effect]:
        outputs, example.outputs = example.outputs, None
        size = samples(example.x)
        if outputs is None or self._numbers + len(self._ready) in self._places.known:
            self._prequential.unscored += size  # the weights may know it already
            return
        values = self._values(outputs, example.y)
        if self._prequential.add(values, size) and self._drift is not None:
            is_alarm = yield from self._drift.look(values, self._prequential.examples, self._row)
            yield from self._try_shadow(example, values, is_alarm)

    def _values(self, outputs: Payload, y: Any) -> dict[str, float]:
        """The loss and the scores."""
        targets = to_targets_device(y, outputs)
        with torch.no_grad():
            given = LossInputs(outputs, self._recipe.loss)
            values = {"loss": loss_of(self._recipe.loss, given.payload, targets).item()}
            for name, score in self._recipe.scores.items():
                assert not isinstance(score, StreamingScore), "the recipe has refused those"
                values |= numbers_of(name, score(given.unchanged(), targets))
        return values

    # ── a shadow ─────────────────────────────────────────────────────────────────────────────────────

    def _try_shadow(self, example: Example, at_work: Mapping[str, float], is_alarm: bool) -> Iterator[Effect]:
        """Have the shadow do what the gates do, if there is one; an alarm begins one."""
        trial, drift = self._trial, self._recipe.drift
        assert drift is not None, "somebody watches"
        if trial is not None:
            trial.add(example.x, example.y, at_work, self._values, self._recipe.loss)
            if trial.is_over:
                self._trial, self._successors = None, trial.successors(self._row)
                takes_over = bool(self._successors)
                yield Report(trial.report(self.name, self._prequential.examples, takes_over))
        elif is_alarm and drift.shadow is not None and self._make_shadow and not self._successors:
            self._trial = Trial(drift, drift.shadow.examples, self._make_shadow())

    def _hand_over(self) -> Iterator[Effect]:
        """Have the gates go on from the shadow, once nothing is there that they began with other weights."""
        if not self._is_under_way:
            self._is_handing_over = True
            yield Send(self._row[-1], TakeOver(self.address, tuple(self._successors.values())))

    def _taken_over(self, message: TakeOver, now_s: float) -> Iterator[Effect]:
        if self._is_handing_over:
            self._successors, self._is_handing_over = {}, False
            yield from self._send(now_s)

    # ── gates that are made anew, and the end ────────────────────────────────────────────────────────

    def _restarted(self, message: Restarted, now_s: float) -> Iterator[Effect]:
        """As any trainer; predictions under way are made again."""
        number = max(self._numbers, self._cuts)  # gates forget both below one number
        self._places.known = self._places.known.moved(self._numbers, number - self._numbers)
        self._numbers = self._cuts = number
        self._is_handing_over = False  # it may have been on its way there
        if [*self._successors] != [*self._row]:  # others have come, or gone
            self._successors = {}
        self._give_up_predictions()
        yield from super()._restarted(message, now_s)

    def _give_up_predictions(self) -> None:
        """Those under way are to be made again."""
        again, self._predicting = list(self._predicting.values()), {}
        self._to_predict.extendleft(reversed(again))

    def _drop(self) -> Iterator[Effect]:
        if self._predicting:
            self._give_up_predictions()
            if not self._flights:
                yield from self._to_all(Forget(self.address))
        yield from super()._drop()
