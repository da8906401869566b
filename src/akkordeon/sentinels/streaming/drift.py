"""The recipe of what is done when the examples of a stream are predicted worse than before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from akkordeon.core.checks import require_factor, require_whole
from akkordeon.core.errors import RecipeError

__all__ = ["Detector", "Drift", "MoreLearning", "ResetOptimizers", "Shadow", "require_drift", "require_gates"]


@runtime_checkable
class Detector(Protocol):
    """A detector of changes, as those of river are: ``ADWIN``, ``PageHinkley``, ``KSWIN``."""

    @property
    def drift_detected(self) -> bool:
        """Whether there was a change with the latest number."""

    def update(self, x: float) -> Any:
        """Take one number in."""


@dataclass(frozen=True)
class MoreLearning:
    """Have all gates learn faster for a while: their learning rates are multiplied, then as they were.

    An alarm that comes meanwhile begins it anew.

    Args:
        factor: what learning rates are multiplied by.
        updates: of each gate, until it is over.
    """

    factor: float = 5.0
    updates: int = 500

    def __post_init__(self) -> None:
        """Refuse what gates would refuse later."""
        require_factor("factor", self.factor)
        require_whole("updates", self.updates)

    @property
    def settings(self) -> dict[str, Any]:
        """What gates are told."""
        return {"boost": (self.factor, self.updates)}

    def chosen(self, row: Sequence[str]) -> Sequence[str]:
        """Which of the gates are told."""
        return row


@dataclass(frozen=True)
class ResetOptimizers:
    """Have optimizers forget what they know of gradients before the change, as their momentum.

    Args:
        gates: their addresses, as ``["gate/0"]``; None for all.
    """

    gates: Sequence[str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What gates are told."""
        return {"reset_optimizer": True}

    def chosen(self, row: Sequence[str]) -> Sequence[str]:
        """Which of the gates are told."""
        return row if self.gates is None else [gate for gate in row if gate in self.gates]


@dataclass(frozen=True)
class Shadow:
    """Have a second network begin anew beside the gates, with the weights of their recipe.

    It predicts each example and learns from it, as the gates do. If it was better in the later half, gates go
    on from its weights and optimizers; if not, it is forgotten. One is tried at a time. It lives with the
    sentinel, as a whole, and a checkpoint has nothing of it.

    Args:
        examples: how long it is tried.
    """

    examples: int = 1000

    def __post_init__(self) -> None:
        """Refuse what would be over before it began."""
        require_whole("examples", self.examples, 2)

    @property
    def settings(self) -> dict[str, Any]:
        """What gates are told: nothing, until it is known which is better."""
        return {}

    def chosen(self, row: Sequence[str]) -> Sequence[str]:
        """Which of the gates are told."""
        return ()


Reaction = MoreLearning | ResetOptimizers | Shadow
"""What may be done about an alarm."""


@dataclass(frozen=True)
class Drift:
    """Watch the loss or a score of a stream, and raise an alarm when it becomes worse.

    Each is a :class:`DriftAlarm <akkordeon.core.streams.reports.DriftAlarm>` for whoever subscribes, and is
    listed in every :class:`StreamReport <akkordeon.core.streams.reports.StreamReport>`.

    Args:
        detector: is given the loss or the score of each prediction, of a small batch the mean; it is copied.
        on: ``"loss"``, or the name of a score of the stream.
        react: what to do about an alarm, one reaction or several; nothing if not given.
        higher_is_better: None means: lower for the loss, higher for anything else. A change for the better,
            as while a network learns, is no alarm.
    """

    detector: Detector
    on: str = "loss"
    react: Reaction | Sequence[Reaction] = ()
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if isinstance(self.detector, type) or not isinstance(self.detector, Detector):
            raise RecipeError(
                f"a detector has update(x) and drift_detected, as river's ADWIN() has; got {self.detector!r}"
            )
        for reaction in self.reactions:
            if not isinstance(reaction, Reaction):
                there = "MoreLearning(…), ResetOptimizers(…) and Shadow(…)"
                raise RecipeError(f"reactions to drift are {there}, got {reaction!r}")

    @property
    def reactions(self) -> tuple[Reaction, ...]:
        """What is done about an alarm, in this order."""
        return tuple(self.react) if isinstance(self.react, Sequence) else (self.react,)

    @property
    def shadow(self) -> Shadow | None:
        """The shadow that is tried after an alarm, if any is."""
        return next((each for each in self.reactions if isinstance(each, Shadow)), None)

    def is_worse(self, value: float, than: float) -> bool:
        """Whether a value of what is watched is worse than another."""
        higher = self.on != "loss" if self.higher_is_better is None else self.higher_is_better
        return value < than if higher else value > than


def require_gates(drift: Drift | None, row: Sequence[str]) -> None:
    """Refuse reactions of gates that are not there."""
    for reaction in () if drift is None else drift.reactions:
        for gate in getattr(reaction, "gates", None) or ():
            if gate not in row:
                there = ", ".join(row)
                raise RecipeError(f"the optimizer of {gate!r} cannot be reset: the gates are {there}")


def require_drift(drift: Drift | None, scores: Mapping[str, Any]) -> None:
    """Refuse what is none, and one that watches a score that is not there."""
    if not isinstance(drift, Drift | None):
        raise RecipeError(f"drift is a Drift, as in Drift(ADWIN()), got {drift!r}")
    if drift is not None and str(drift.on).partition("/")[0] not in {"loss", *scores}:
        known = ", ".join(["loss", *scores])
        raise RecipeError(f"drift is watched on {drift.on!r}, but the scores are {known}")
