"""Sentinels: recipes of the actors that feed a network. Labels never leave them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from akkordeon.core.checks import require_above, require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.core.payload import Payload
from akkordeon.sentinels.loss import OWN_WEIGHTS, Loss, check_loss
from akkordeon.sentinels.roles import CHECKPOINT, PREDICT, STREAM, TEST, TRAIN, VALIDATE, Role
from akkordeon.sentinels.scores import Best, Score, require_functions, require_known, scores_by_name
from akkordeon.sentinels.streaming.drift import Drift, require_drift

__all__ = ["Best", "Delay", "Evaluation", "OnFailure", "Sentinel", "Split", "Streaming", "Training"]

Split = Callable[[Any], tuple[Any, Any]]
"""From a batch, as its source gives it, to (x, y)."""

OnFailure = Literal["restart", "fail"]
"""What becomes of a sentinel that fails or is lost."""

Delay = int | Callable[[Any, Any], int | None] | None
"""How many examples later a label comes, or a function of (x, y) that says so; None for at once, or never."""


@dataclass(frozen=True, kw_only=True)
class Sentinel:
    """The recipe of a sentinel; make one with :meth:`train`, :meth:`validate`, :meth:`test`, :meth:`predict`.

    ``batches`` is any iterable of (x, y): a ``DataLoader``, a list, a generator, an endless stream; or a
    pair of tensors (x, y), cut into batches of ``batch_size`` by slicing. Batches of any other form, such as
    one dict with the labels in it, are made (x, y) by ``split``.
    """

    role: Role
    batches: Any
    name: str | None = None
    batch_size: int = 128
    in_flight: int | None = None
    split: Split | None = None
    on_failure: OnFailure = "fail"

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if self.on_failure not in ("restart", "fail"):
            raise RecipeError(f"a sentinel's on_failure is 'restart' or 'fail', got {self.on_failure!r}")
        for what in ("in_flight", "batch_size"):
            require_whole(what, getattr(self, what), optional=True)
        if self.split is not None and not callable(self.split):
            raise RecipeError(f"split is a function from a batch to (x, y), got {type(self.split).__name__}")
        if self.name is not None and not (isinstance(self.name, str) and re.fullmatch("[^/#]+", self.name)):
            raise RecipeError(f"a sentinel's name has no '/' and no '#' and is not empty, got {self.name!r}")

    @staticmethod
    def train(
        batches: Any,
        loss: Loss,
        *,
        in_flight: int = 1,
        epochs: int | None = None,
        samples: int | None = None,
        seconds: float | None = None,
        scores: Mapping[str, Score] | None = None,
        report_every: float | None = 10.0,
        split: Split | None = None,
        batch_size: int = 128,
        name: str | None = None,
        replica: int | None = None,
        on_failure: OnFailure = "fail",
    ) -> Training:
        """A sentinel that trains.

        Args:
            batches: (x, y) batches, or a pair of tensors.
            loss: from (outputs, y) to one number.
            in_flight: how many batches may be under way at once. One gives the numbers of the plain PyTorch
                loop; more keep more gates busy, with gradients that are stale by up to as many updates.
            epochs: times to read the source through; once, if no other limit is given.
            samples: end after the batch that reaches this many samples.
            seconds: end after this time.
            scores: what else to report, by name: torchmetrics metrics or functions of (outputs, y).
            report_every: seconds (a float) or trained batches (an int) from one report to the next; or None.
            split: from a batch to (x, y), where the source gives batches of another form.
            batch_size: for a pair of tensors.
            name: for reports and ``detach``.
            replica: of a Downpour, the one to train. None deals the batches out to one sentinel each.
            on_failure: ``"restart"`` has it go on where it was, as often as ``Network(recovery=…)`` says.

        Raises:
            RecipeError: a number out of range.
        """
        return Training(
            batches=batches,
            loss=loss,
            in_flight=in_flight,
            epochs=1 if (epochs, samples, seconds) == (None, None, None) else epochs,
            samples=samples,
            seconds=seconds,
            scores=scores_by_name(scores),
            report_every=report_every,
            split=split,
            batch_size=batch_size,
            name=name,
            replica=replica,
            on_failure=on_failure,
        )

    @staticmethod
    def stream(
        source: Any,
        loss: Loss,
        *,
        scores: Mapping[str, Score] | None = None,
        delay: Delay = None,
        window: int = 1000,
        fading: float = 0.999,
        max_waiting: int = 10_000,
        drift: Drift | None = None,
        in_flight: int = 1,
        samples: int | None = None,
        seconds: float | None = None,
        report_every: float | None = 10.0,
        split: Split | None = None,
        batch_size: int = 1,
        name: str | None = None,
        on_failure: OnFailure = "fail",
    ) -> Streaming:
        """A sentinel that predicts each example of a stream before it learns from it.

        Args:
            source: (x, y) batches, mostly of one example, or a pair of tensors, or :class:`Question` and
                :class:`Answer` where labels come by themselves. No more is read than ``in_flight`` allows.
            loss: from (outputs, y) to one number.
            scores: what else to report, by name: functions of (outputs, y).
            delay: how many examples after its own the label of an example comes, at least before the next
                is predicted; or a function of (x, y) that says so, with None for a label that never comes.
            window: examples in the sliding window of the scores.
            fading: what the weight of an example is multiplied by for every one after it.
            max_waiting: predictions that wait for their label; of more the oldest is dropped, and counted.
            drift: what to do when examples are predicted worse than before.
            in_flight: how many may be under way at once; one gives scores and weights of a plain loop.
            samples: end after the batch with which so many examples were learned from.
            seconds: end after this time.
            report_every: seconds (a float) or trained batches (an int) from one report to the next.
            split: from what the source gives to (x, y), :class:`Question` or :class:`Answer`.
            batch_size: for a pair of tensors.
            name: for reports and ``detach``.
            on_failure: see :meth:`train`.

        Raises:
            RecipeError: a number out of range, or a score that is no function.
        """
        return Streaming(
            batches=source,
            loss=loss,
            scores=scores_by_name(scores),
            delay=delay,
            window=window,
            fading=fading,
            max_waiting=max_waiting,
            drift=drift,
            in_flight=in_flight,
            epochs=1,
            samples=samples,
            seconds=seconds,
            report_every=report_every,
            split=split,
            batch_size=batch_size,
            name=name,
            on_failure=on_failure,
        )

    @staticmethod
    def validate(
        batches: Any,
        loss: Loss,
        *,
        scores: Mapping[str, Score] | None = None,
        every_s: float | None = None,
        every_epoch: int | None = None,
        every_updates: int | None = None,
        best: Best | None = None,
        schedule_by: str | None = None,
        keep_last: bool = False,
        split: Split | None = None,
        in_flight: int | None = None,
        batch_size: int = 1024,
        name: str | None = None,
        ema: bool = False,
        on_failure: OnFailure = "fail",
    ) -> Evaluation:
        """A sentinel that validates while others train, each round on one consistent cut.

        Whatever the rhythm, ``session.wait()`` has it make a last round on the final weights. A round is left
        out where no gate has learned since the one before.

        Args:
            batches: (x, y) batches that can be read again and again, or a pair of tensors.
            loss: from (outputs, y) to one number.
            scores: what else to report, by name.
            every_s: a round each time so many seconds have passed.
            every_epoch: a round after each so many epochs of any training sentinel; an endless stream has
                none, so validate beside it by ``every_s`` or ``every_updates``.
            every_updates: a round after each so many updates of the first gate.
            best: keep the weights of the best round, and maybe stop training by it.
            schedule_by: ``"loss"`` or the name of a score, handed after each round to the schedulers of gates
                that want one (``ReduceLROnPlateau``).
            keep_last: report the weights of every round, as a ``LastKept``, for those who write them down.
            split: from a batch to (x, y), where the source gives batches of another form.
            in_flight: evaluation batches under way at once.
            batch_size: for a pair of tensors.
            name: for reports and ``detach``.
            ema: on the average of the weights that gates with ``ema`` keep, and not on the weights.
            on_failure: see :meth:`train`.

        Raises:
            RecipeError: a number out of range, or ``best`` names a score that is not there.
        """
        return Evaluation(
            role=VALIDATE,
            batches=batches,
            loss=loss,
            scores=scores_by_name(scores),
            every_s=every_s,
            every_epoch=every_epoch,
            every_updates=every_updates,
            best=best,
            schedule_by=schedule_by,
            keep_last=keep_last,
            split=split,
            in_flight=in_flight,
            batch_size=batch_size,
            name=name,
            ema=ema,
            on_failure=on_failure,
        )

    @staticmethod
    def test(
        batches: Any,
        loss: Loss,
        *,
        scores: Mapping[str, Score] | None = None,
        split: Split | None = None,
        in_flight: int | None = None,
        batch_size: int = 1024,
        name: str | None = None,
        ema: bool = False,
    ) -> Evaluation:
        """A sentinel that makes one round at once, on one cut, and ends; see :meth:`validate`."""
        return Evaluation(
            role=TEST,
            batches=batches,
            loss=loss,
            scores=scores_by_name(scores),
            split=split,
            in_flight=in_flight,
            batch_size=batch_size,
            name=name,
            ema=ema,
        )

    @staticmethod
    def predict(
        inputs: Payload | Iterable[Payload],
        *,
        in_flight: int | None = None,
        batch_size: int = 1024,
        name: str | None = None,
        ema: bool = False,
    ) -> Evaluation:
        """A sentinel that sends inputs through on one cut and ends with the outputs.

        Args:
            inputs: a tensor, or a tuple or dict of such, cut into batches; or a list or iterator of batches.
            in_flight: batches under way at once.
            batch_size: for tensors.
            name: for reports.
            ema: on the average of the weights; see :meth:`validate`.
        """
        return Evaluation(
            role=PREDICT,
            batches=inputs,
            loss=None,
            in_flight=in_flight,
            batch_size=batch_size,
            name=name,
            ema=ema,
        )

    @staticmethod
    def checkpoint(
        *, every_s: float | None = None, every_updates: int | None = None, name: str | None = None
    ) -> Evaluation:
        """A sentinel that takes checkpoints while others train, and a last one when they have ended.

        Each is a :class:`CheckpointTaken <akkordeon.core.reports.CheckpointTaken>` for whoever subscribes.

        Args:
            every_s: one each time so many seconds have passed.
            every_updates: one after each so many updates of the first gate.
            name: for reports and ``detach``.

        Raises:
            RecipeError: a number out of range.
        """
        return Evaluation(
            role=CHECKPOINT, batches=(), loss=None, every_s=every_s, every_updates=every_updates, name=name
        )


@dataclass(frozen=True, kw_only=True)
class Training(Sentinel):
    """The recipe of a training sentinel; see :meth:`Sentinel.train`.

    ``dealt_to`` has the replicas among which the data were dealt, where it has one part of them.
    """

    role: Role = field(default=TRAIN, init=False)
    in_flight: int = 1
    loss: Loss
    epochs: int | None = None
    samples: int | None = None
    seconds: float | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    report_every: float | None = 10.0
    replica: int | None = None
    dealt_to: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if self.in_flight is None:
            raise RecipeError("in_flight of a training sentinel is a whole number of at least 1, got None")
        Sentinel.__post_init__(self)
        check_loss(self.loss)
        if isinstance(self.loss, nn.Module):
            for name, weight in self.loss.named_parameters():
                if weight.requires_grad:
                    raise RecipeError(OWN_WEIGHTS.format(f"{name!r}"))
        for what in ("epochs", "samples", "seconds", "report_every"):
            require_above(what, getattr(self, what), optional=True)
        require_whole("replica", self.replica, 0, optional=True)


@dataclass(frozen=True, kw_only=True)
class Streaming(Training):
    """The recipe of a sentinel that learns from a stream; see :meth:`Sentinel.stream`."""

    role: Role = field(default=STREAM, init=False)
    delay: Delay = None
    window: int = 1000
    fading: float = 0.999
    max_waiting: int = 10_000
    drift: Drift | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        Training.__post_init__(self)
        require_whole("window", self.window)
        require_whole("max_waiting", self.max_waiting)
        if not callable(self.delay):
            require_whole("delay", self.delay, 0, optional=True)
        if not 0 < self.fading <= 1:
            raise RecipeError(f"fading is above 0 and at most 1, got {self.fading}")
        require_functions(self.scores)
        require_drift(self.drift, self.scores)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Sentinel):
    """The recipe of a sentinel that works on cuts; see :meth:`Sentinel.validate`.

    ``at_rest``: of one that keeps, whether the others are to come to rest for it.
    """

    loss: Loss | None
    scores: Mapping[str, Score] = field(default_factory=dict)
    every_s: float | None = None
    every_epoch: int | None = None
    every_updates: int | None = None
    best: Best | None = None
    schedule_by: str | None = None
    keep_last: bool = False
    at_rest: bool = False
    ema: bool = False

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        Sentinel.__post_init__(self)
        if not (self.role.answers or self.role.keeps):
            check_loss(self.loss)
        for what in ("every_s", "every_epoch", "every_updates"):
            require_above(what, getattr(self, what), optional=True)
        require_known(self.best, self.schedule_by, self.scores)
