"""A detector at work on the loss or a score of a stream: what it finds, and what comes of that.

    value ─▶ detector: a change? ─▶ for the worse? ─▶ alarm ─▶ reactions: Change ─▶ gates

The detector is somebody else's, and may not tell the direction of a change.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator, Mapping, Sequence

from akkordeon.core.actor import Effect, Report, Send
from akkordeon.core.errors import RecipeError
from akkordeon.core.plain_state import PlainState
from akkordeon.core.streams.reports import DriftAlarm
from akkordeon.core.surgery.messages import Change
from akkordeon.sentinels.streaming.drift import Drift

__all__ = ["DriftWatch"]

ALARMS_MAX = 100
"""The latest alarms that are kept."""

OF_LATE = 30
"""About so many values tell how it is now: the latest has one part of so many, of few values more."""


class DriftWatch:
    """Watches what is predicted of a stream.

    Args:
        name: of the sentinel, for reports.
        recipe: what is watched, by which detector, and how gates react.
    """

    def __init__(self, name: str, recipe: Drift) -> None:
        self._name = name
        self._recipe = recipe
        self._detector = copy.deepcopy(recipe.detector)
        self._alarms: deque[int] = deque(maxlen=ALARMS_MAX)
        self._values = 0  # since the latest change
        self._mean = self._of_late = 0.0

    @property
    def alarms(self) -> tuple[int, ...]:
        """How many examples had been scored at the latest alarms."""
        return tuple(self._alarms)

    def look(
        self, scores: Mapping[str, float], examples: int, row: Sequence[str]
    ) -> Generator[Effect, None, bool]:
        """Take in the scores of a prediction, and raise the alarm and react if it is time to.

        Args:
            scores: the loss and the scores, by name.
            examples: that have been scored by now.
            row: addresses of the gates.

        Returns:
            Whether there was an alarm.
        """
        value = scores.get(self._recipe.on)
        if value is None:
            known = ", ".join(scores)
            raise RecipeError(f"drift is watched on {self._recipe.on!r}, but the scores are {known}")
        self._values += 1
        self._mean += (value - self._mean) / self._values
        self._of_late += (value - self._of_late) * max(1 / OF_LATE, 2 / (self._values + 1))
        self._detector.update(value)
        if not self._detector.drift_detected:
            return False
        is_worse = self._recipe.is_worse(self._of_late, self._mean)
        self._values = 0
        if is_worse:
            self._alarms.append(examples)
            yield Report(DriftAlarm(self._name, self._recipe.on, examples))
            for reaction in self._recipe.reactions:
                yield from (Send(gate, Change(reaction.settings)) for gate in reaction.chosen(row))
        return is_worse

    def state(self) -> PlainState:
        """Where it stands, as plain data, but for the detector: those have no such form."""
        return {"alarms": list(self._alarms)}

    def go_on_from(self, state: PlainState) -> None:
        """Take up what another one was; the detector begins anew."""
        self._alarms.extend(state["alarms"])
