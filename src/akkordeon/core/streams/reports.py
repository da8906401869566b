"""What a sentinel that learns from a stream tells of its predictions."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DriftAlarm", "LabelCount", "ShadowTried", "StreamReport"]


@dataclass
class LabelCount:
    """What became of labels, in examples as they came: a small batch counts once.

    Attributes:
        waiting: predictions whose label is still to come.
        dropped: predictions whose label had not come when there were too many, or when the stream ended.
        unmatched: labels for which there was no prediction (any more).
        duplicates: questions that came under a key again, and were left out.
    """

    waiting: int = 0
    dropped: int = 0
    unmatched: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class StreamReport:
    """How well a stream was predicted, always before it was learned from.

    Attributes:
        sentinel: its name.
        overall: the loss, under ``"loss"``, and the scores over all predictions whose label has come; NaN
            before the first.
        window: likewise over the latest ones.
        fading: likewise with weights that fade with age.
        examples: in ``overall``.
        unscored: examples left out of all of these, as the gates refused to predict them, or their loss or a
            score was not finite.
        labels: what became of them.
        alarms: how many examples had been scored at each alarm for drift; the latest 100.
        seconds: since the sentinel began.
    """

    sentinel: str
    overall: dict[str, float]
    window: dict[str, float]
    fading: dict[str, float]
    examples: int
    unscored: int
    labels: LabelCount = field(default_factory=LabelCount)
    alarms: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """A stream is predicted worse than before, as far as a detector can tell.

    Attributes:
        sentinel: its name.
        on: what was watched: ``"loss"``, or the name of a score.
        examples: that had been scored by then.
    """

    sentinel: str
    on: str
    examples: int

    def __str__(self) -> str:
        return f"{self.sentinel}: its {self.on} is worse than before, after {self.examples:,} examples"


@dataclass(frozen=True, slots=True)
class ShadowTried:
    """A shadow has learned beside the gates for long enough to know which predicts better.

    Attributes:
        sentinel: its name.
        on: what was compared: ``"loss"``, or the name of a score.
        examples: of the stream that had been scored by then.
        at_work: the mean of the gates.
        shadow: that of the shadow on the same examples.
        takes_over: whether the gates go on from the shadow.
    """

    sentinel: str
    on: str
    examples: int
    at_work: float
    shadow: float
    takes_over: bool

    def __str__(self) -> str:
        what = "takes over" if self.takes_over else "is given up"
        return (
            f"{self.sentinel}: a shadow {what} after {self.examples:,} examples, with {self.on} "
            f"{self.shadow:.4f} beside {self.at_work:.4f}"
        )
