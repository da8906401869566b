"""Scores of batches, and their means over an epoch or a round."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from akkordeon.core.checks import require_whole
from akkordeon.core.errors import RecipeError

__all__ = [
    "Best",
    "Score",
    "ScoreBoard",
    "StreamingScore",
    "accuracy",
    "numbers_of",
    "require_functions",
    "require_known",
    "scores_by_name",
]

COMING_MAX = 512
"""Batches whose losses are not read yet: of so many the first half is."""


@runtime_checkable
class StreamingScore(Protocol):
    """The part of ``torchmetrics.Metric`` that is used."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take one batch in."""

    def compute(self) -> Any:
        """The score of all batches taken in."""

    def reset(self) -> None:
        """Start again."""


Score = StreamingScore | Callable[[Any, Any], Any]
"""A torchmetrics metric or collection, or a function of (outputs, targets) that is averaged over samples."""


@dataclass(frozen=True)
class Best:
    """Keep the weights of the best validation round, and stop training when none was better for long.

    Args:
        score: name of a score, or ``"loss"``.
        higher_is_better: None means: lower for the loss, higher for anything else.
        patience: rounds without a better one before training stops; None never stops it.
    """

    score: str = "loss"
    higher_is_better: bool | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        """Refuse what would never stop, or at once."""
        require_whole("patience", self.patience, optional=True)

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value beats the best so far; NaN beats nothing."""
        if than is None:
            return value == value
        higher = self.score != "loss" if self.higher_is_better is None else self.higher_is_better
        return value > than if higher else value < than


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of samples whose largest output is at the target.

    Args:
        outputs: (N, classes, …) scores or probabilities.
        targets: (N, …) class numbers, int64.
    """
    return (outputs.argmax(1) == targets).float().mean()


def scores_by_name(scores: Mapping[str, Score] | None) -> dict[str, Score]:
    """What a user gave as scores, as a dict.

    Raises:
        RecipeError: it is none.
    """
    if scores is None:
        return {}
    if not hasattr(scores, "keys"):  # a MetricCollection is no Mapping, but has names
        got = getattr(scores, "__name__", type(scores).__name__)
        raise RecipeError(
            "scores is a dict from names to functions of (outputs, y) or torchmetrics metrics, "
            f'as in {{"accuracy": akkordeon.accuracy}}; got {got}'
        )
    for name, score in scores.items():
        if not isinstance(name, str):
            raise RecipeError(f"the name of a score is a string, got {name!r}")
        if not (callable(score) or isinstance(score, StreamingScore)):
            raise RecipeError(f"the score {name!r} is a function of (outputs, y) or a metric, got {score!r}")
    return dict(scores)


def require_known(best: Best | None, schedule_by: str | None, scores: Mapping[str, Score]) -> None:
    """Refuse to go by a score that is not there."""
    if not isinstance(best, Best | None):
        raise RecipeError(f"best is a Best, as in Best('loss', patience=5), got {best!r}")
    by: dict[str, str] = {} if best is None else {"best": best.score}
    if schedule_by is not None:
        by["schedule_by"] = schedule_by
    for what, score in by.items():
        if str(score).partition("/")[0] not in {"loss", *scores}:
            known = ", ".join(["loss", *scores])
            raise RecipeError(f"{what} is by {score!r}, but the scores are {known}")


def require_functions(scores: Mapping[str, Score]) -> None:
    """Refuse metrics where each example has a score."""
    for name, score in scores.items():
        if isinstance(score, StreamingScore):
            raise RecipeError(
                f"the score {name!r} of a stream is a function of (outputs, y), which is averaged over "
                f"examples; got the metric {type(score).__name__}"
            )


class ScoreBoard:
    """The mean loss and the scores over the batches of one epoch or round, and of windows in it.

    Args:
        scores: by name, torchmetrics metrics (copied) or plain functions.
        endless: have torchmetrics metrics keep no batch beyond a window, as some keep every output they are
            given, which an epoch without an end cannot have. Their score is the mean over the windows.
        finite_only: leave batches out whose loss is not finite, as gates refuse them; of a loss that is a
            number its sentinel sees to that.
    """

    def __init__(
        self, scores: Mapping[str, Score], endless: bool = False, *, finite_only: bool = False
    ) -> None:
        self._streaming: dict[str, StreamingScore] = {}
        self._functions: dict[str, Callable[[Any, Any], Any]] = {}
        self._endless = endless
        self._finite_only = finite_only
        self._coming: list[tuple[Tensor, dict[str, Any], int]] = []  # from a device that is behind
        self._counted = _Sums()
        self._before = _Sums()  # those of all windows but this one
        for name, score in scores.items():
            if isinstance(score, StreamingScore):
                self._streaming[name] = copy.deepcopy(score)
                self._streaming[name].reset()
            else:
                self._functions[name] = score

    def add(self, loss: float | Tensor, outputs: Any, targets: Any, samples: int) -> None:
        """Take one batch in; the loss and plain functions count by samples.

        A loss that is a tensor, and the scores beside it, are read when somebody asks for a sum.
        """
        for score in self._streaming.values():
            score.update(outputs, targets)
        found = {name: function(outputs, targets) for name, function in self._functions.items()}
        if not isinstance(loss, Tensor):
            self._count(loss, found, samples)
            return
        self._coming.append((loss, found, samples))
        if len(self._coming) == COMING_MAX:
            self._read(COMING_MAX // 2)

    def _read(self, count: int) -> None:
        """Count what came first: the device must have come so far."""
        coming, self._coming = self._coming[:count], self._coming[count:]  # once, also if a score is none
        for loss, found, samples in coming:
            number = loss.item()
            if not self._finite_only or math.isfinite(number):
                self._count(number, found, samples)

    def _count(self, loss: float, found: Mapping[str, Any], samples: int) -> None:
        self._counted.samples += samples
        self._counted.loss += loss * samples
        for name, score in found.items():
            self._counted.add(numbers_of(name, score), samples)

    @property
    def _sums(self) -> _Sums:
        """Those of all batches."""
        if self._coming:
            self._read(len(self._coming))
        return self._counted

    @property
    def samples(self) -> int:
        """Taken in so far."""
        return self._sums.samples

    @property
    def loss(self) -> float:
        """Mean loss per sample; NaN before the first batch."""
        return self._sums.mean(self._sums.loss)

    def scores(self) -> dict[str, float]:
        """The scores by name; NaN before the first batch."""
        sums = self._sums
        if not sums.samples:
            return {name: float("nan") for name in (*self._streaming, *self._functions)}
        fresh = sums.samples > self._before.samples
        streaming = self._computed() if fresh or not self._endless else {}
        if self._endless and self._before.samples:
            sums = sums.copy()
            sums.add(streaming, sums.samples - self._before.samples)
            streaming = {}
        return streaming | {name: sums.mean(total) for name, total in sums.scores.items()}

    def window(self) -> tuple[float, dict[str, float]]:
        """Mean loss and scores since the last call; of metrics that go on, over all so far."""
        now, before = self._sums, self._before
        samples = now.samples - before.samples
        if not samples:
            return float("nan"), {name: float("nan") for name in (*self._streaming, *self._functions)}
        scores = self._computed()
        functions = {
            n: (total - before.scores[n]) / samples for n, total in now.scores.items() if n not in scores
        }
        if self._endless:
            now.add(scores, samples)
            for metric in self._streaming.values():
                metric.reset()
        self._before = now.copy()
        return (now.loss - before.loss) / samples, scores | functions

    def sums(self) -> dict[str, Any]:
        """The sums of the loss and of plain functions, as plain data."""
        return {"samples": self._sums.samples, "loss": self._sums.loss, "scores": dict(self._sums.scores)}

    def go_on_from(self, sums: Mapping[str, Any]) -> None:
        """Begin with sums of before; a window begins as well, and metrics are of what comes from now on."""
        scores = {n: total for n, total in sums["scores"].items() if n.partition("/")[0] in self._functions}
        self._counted = _Sums(sums["samples"], sums["loss"], defaultdict(float, scores))
        self._before = self._counted.copy()

    def _computed(self) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name, metric in self._streaming.items():
            scores |= numbers_of(name, metric.compute())
        return scores


@dataclass
class _Sums:
    """Sums over samples."""

    samples: int = 0
    loss: float = 0.0
    scores: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, scores: Mapping[str, float], samples: int) -> None:
        for name, score in scores.items():
            self.scores[name] += score * samples

    def mean(self, total: float) -> float:
        return total / self.samples if self.samples else float("nan")

    def copy(self) -> _Sums:
        return _Sums(self.samples, self.loss, self.scores.copy())


def numbers_of(name: str, score: Any) -> dict[str, float]:
    """A score, or, of a collection of metrics, its scores as NAME/METRIC."""
    if isinstance(score, Mapping):
        return {f"{name}/{part}": _number(f"{name}/{part}", value) for part, value in score.items()}
    return {name: _number(name, score)}


def _number(name: str, score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError):
        shape = f" of shape {tuple(score.shape)}" if isinstance(score, Tensor) else ""
        got = f"a {type(score).__name__}{shape}"
        raise RecipeError(f"the score {name!r} must be one number, got {got}") from None
