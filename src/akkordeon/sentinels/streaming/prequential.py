"""Scores of predictions that were made before their examples were learned from.

    overall   ■■■■■■■■■■■■■■■■     the mean over all
    window            ■■■■■■■■     over the latest ones
    fading    ··░░░▒▒▒▒▓▓▓▓███     weights of factor to the power of the age, in examples

Gama, Sebastião and Rodrigues 2013, "On evaluating stream learning algorithms", has all three.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

__all__ = ["Prequential"]


class Prequential:
    """Means of a loss and scores.

    Args:
        window: examples in the sliding window; a small batch counts by its examples, and the oldest is out
            when the others are enough to fill it.
        fading: what the weight of an example is multiplied by for every one that comes after it.

    Attributes:
        examples: taken in.
        unscored: left out, as they were refused, or their loss or a score was not finite.
    """

    def __init__(self, window: int, fading: float) -> None:
        self.examples = 0
        self.unscored = 0
        self._size = window
        self._factor = fading
        self._sums: dict[str, float] = {}
        self._recent: deque[tuple[int, dict[str, float]]] = deque()
        self._in_window = 0
        self._faded: dict[str, float] = {}
        self._weight = 0.0

    def add(self, values: Mapping[str, float], examples: int) -> bool:
        """Take in the means over so many examples, by name; whether they were, as all are finite."""
        if not all(map(math.isfinite, values.values())):
            self.unscored += examples
            return False
        self.examples += examples
        decay = self._factor**examples
        self._weight = self._weight * decay + examples
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * examples
            self._faded[name] = self._faded.get(name, 0.0) * decay + value * examples
        self._recent.append((examples, dict(values)))
        self._in_window += examples
        while self._in_window - self._recent[0][0] >= self._size:
            self._in_window -= self._recent.popleft()[0]
        return True

    def overall(self) -> dict[str, float]:
        """The means over all."""
        return {name: total / self.examples for name, total in self._sums.items()}

    def window(self) -> dict[str, float]:
        """The means over the window."""
        return {
            name: math.fsum(examples * values[name] for examples, values in self._recent) / self._in_window
            for name in self._sums
        }

    def fading(self) -> dict[str, float]:
        """The means with weights that fade."""
        return {name: total / self._weight for name, total in self._faded.items()}

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        return {
            "examples": self.examples,
            "unscored": self.unscored,
            "sums": dict(self._sums),
            "window": [[examples, dict(values)] for examples, values in self._recent],
            "faded": dict(self._faded),
            "weight": self._weight,
        }

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take up what another one was; the window is as long as this one's."""
        self.examples, self.unscored = state["examples"], state["unscored"]
        self._sums, self._faded = dict(state["sums"]), dict(state["faded"])
        self._weight = state["weight"]
        self._recent = deque((examples, dict(values)) for examples, values in state["window"])
        self._in_window = sum(examples for examples, _ in self._recent)
        while self._recent and self._in_window - self._recent[0][0] >= self._size:
            self._in_window -= self._recent.popleft()[0]
