"""Numbers that vary: how long a message is under way, how long a machine stays up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Protocol

from akkordeon.core.errors import RecipeError

__all__ = ["Constant", "Distribution", "Exponential", "LogNormal", "Uniform", "as_distribution"]


class Distribution(Protocol):
    """Gives a number when asked; what it draws with is given to it."""

    def draw(self, rng: Random) -> float:
        """The next number, at least 0."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same."""

    value: float

    def __post_init__(self) -> None:
        """Refuse what is below 0: these are times."""
        _check_not_negative("a constant", self.value)

    def draw(self, rng: Random) -> float:
        """The value; nothing is drawn."""
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Anything between ``low`` and ``high``, equally often."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what is below 0: these are times."""
        _check_not_negative("the low end of Uniform", self.low)
        if self.high < self.low:
            raise RecipeError(f"Uniform goes from low to high, got {self.low} and {self.high}")

    def draw(self, rng: Random) -> float:
        """The next number."""
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Mostly near ``median``, sometimes much more: what networks do.

    Args:
        median: half of all numbers are smaller.
        p99: one in a hundred is larger.
    """

    median: float
    p99: float

    def __post_init__(self) -> None:
        """A logarithm needs something above 0."""
        if not 0 < self.median <= self.p99:
            raise RecipeError(f"LogNormal needs 0 < median <= p99, got {self.median} and {self.p99}")

    def draw(self, rng: Random) -> float:
        """The next number."""
        sigma = math.log(self.p99 / self.median) / 2.3263478740408408  # the normal's 99th percentile
        return self.median * math.exp(rng.gauss(0.0, sigma))


@dataclass(frozen=True, slots=True)
class Exponential:
    """The time until something that happens at random, ``mean`` apart on average, happens."""

    mean: float

    def __post_init__(self) -> None:
        """A rate needs something above 0."""
        if not self.mean > 0:
            raise RecipeError(f"Exponential needs a mean above 0, got {self.mean}")

    def draw(self, rng: Random) -> float:
        """The next number."""
        return rng.expovariate(1 / self.mean)


def as_distribution(value: float | Distribution) -> Distribution:
    """A plain number is a constant."""
    return Constant(float(value)) if isinstance(value, int | float) else value


def _check_not_negative(what: str, value: float) -> None:
    if not value >= 0:
        raise RecipeError(f"{what} is at least 0, got {value}")
