"""The recipe of what a stream does when its examples are predicted worse than before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from akkordeon.core.errors import RecipeError

__all__ = ["Detector", "Drift", "require_drift"]


@runtime_checkable
class Detector(Protocol):
    """A detector of changes, as those of river are: ``ADWIN``, ``PageHinkley``, ``KSWIN``."""

    @property
    def drift_detected(self) -> bool:
        """Whether there was a change with the latest number."""

    def update(self, x: float) -> Any:
        """Take one number in."""


@dataclass(frozen=True)
class Drift:
    """Watch the loss or a score of a stream, and raise an alarm when it becomes worse.

    Each is a :class:`DriftAlarm <akkordeon.core.streams.reports.DriftAlarm>` for whoever subscribes, and is
    listed in every :class:`StreamReport <akkordeon.core.streams.reports.StreamReport>`.

    Args:
        detector: is given the loss or the score of each prediction, of a small batch the mean; it is copied.
        on: ``"loss"``, or the name of a score of the stream.
        higher_is_better: None means: lower for the loss, higher for anything else. A change for the better,
            as while a network learns, is no alarm.
    """

    detector: Detector
    on: str = "loss"
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if isinstance(self.detector, type) or not isinstance(self.detector, Detector):
            raise RecipeError(
                f"a detector has update(x) and drift_detected, as river's ADWIN() has; got {self.detector!r}"
            )

    def is_worse(self, value: float, than: float) -> bool:
        """Whether a value of what is watched is worse than another."""
        higher = self.on != "loss" if self.higher_is_better is None else self.higher_is_better
        return value < than if higher else value > than


def require_drift(drift: Drift | None, scores: Mapping[str, Any]) -> None:
    """Refuse what is none, and one that watches a score that is not there."""
    if not isinstance(drift, Drift | None):
        raise RecipeError(f"drift is a Drift, as in Drift(ADWIN()), got {drift!r}")
    if drift is not None and str(drift.on).partition("/")[0] not in {"loss", *scores}:
        known = ", ".join(["loss", *scores])
        raise RecipeError(f"drift is watched on {drift.on!r}, but the scores are {known}")
