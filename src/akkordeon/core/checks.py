"""Checks of the numbers and paths that users give: a sentence where one is of another kind or out of range.

Wherever one comes from a user it is checked here before it is compared, since what Python says of
``"2" < 1`` names neither the argument nor what it may be.
"""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from typing import Any

from akkordeon.core.errors import AkkordeonError, RecipeError

__all__ = [
    "is_number",
    "require_above",
    "require_factor",
    "require_path",
    "require_seconds",
    "require_timeout",
    "require_whole",
]


def require_whole(
    what: str,
    value: Any,
    least: int | None = 1,
    *,
    optional: bool = False,
    error: type[AkkordeonError] = RecipeError,
) -> None:
    """Refuse what is no whole number, or below a ``least`` one; None passes where it is ``optional``."""
    if value is None and optional:
        return
    if least is not None and not (is_number(value) and value >= least):
        raise error(f"{what} is at least {least}, got {value!r}")
    if not isinstance(value, Integral):
        raise error(f"{what} is a whole number, got {value!r}")


def require_above(what: str, value: Any, bound: float = 0, *, optional: bool = False) -> None:
    """Refuse what is no number above ``bound``; None passes where it is ``optional``."""
    if value is None and optional:
        return
    if not (is_number(value) and value > bound):
        raise RecipeError(f"{what} is above {bound}, got {value!r}")


def require_factor(what: str, value: Any) -> None:
    """Refuse what is no finite number above 0."""
    require_above(what, value)
    if value == math.inf:
        raise RecipeError(f"{what} is finite, got {value!r}")


def require_seconds(what: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what is no number of seconds, such as a string or NaN; None passes where it is ``optional``."""
    if value is None and optional:
        return
    try:
        if not is_number(value) or math.isnan(value):
            raise RecipeError(f"{what} is a number of seconds, got {value!r}")
    except OverflowError:  # it has too many digits to be told, too
        raise RecipeError(f"{what} is a number of seconds, got one that is too large for a float") from None


def require_timeout(value: Any) -> None:
    """Refuse what is no number of seconds to wait at most, or None for as long as it takes."""
    require_seconds("a timeout", value, optional=True)


def require_path(what: str, value: Any, *, error: type[AkkordeonError] = RecipeError) -> None:
    """Refuse what is no path of a file."""
    if not isinstance(value, str | os.PathLike):
        raise error(f"{what} is the path of a file, got {type(value).__name__}")


def is_number(value: object) -> bool:
    """Whether it can be compared with numbers, as an integer, a float or a number of NumPy's can."""
    return isinstance(value, Real)
