"""Checks of numbers and paths that users give."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from akkordeon.core.checks import require_above, require_path, require_seconds, require_whole
from akkordeon.core.errors import RecipeError, TaskError


def test_numbers_of_every_library_pass():
    for one in (1, np.int64(1), True):
        require_whole("n", one)
    for half in (0.5, np.float32(0.5), Fraction(1, 2)):
        require_above("x", half)
        require_seconds("t", half)
    require_seconds("t", math.inf)


def test_none_passes_where_it_is_optional_and_nowhere_else():
    for require in (require_whole, require_above, require_seconds):
        require("n", None, optional=True)
        with pytest.raises(RecipeError, match=r"^n is .*, got None$"):
            require("n", None)


@pytest.mark.parametrize(
    ("require", "value", "sentence"),
    [
        (require_whole, 0, "n is at least 1, got 0"),
        (require_whole, "2", "n is at least 1, got '2'"),
        (require_whole, math.nan, "n is at least 1, got nan"),
        (require_whole, 2.5, "n is a whole number, got 2.5"),
        (require_above, 0, "n is above 0, got 0"),
        (require_above, "2", "n is above 0, got '2'"),
        (require_above, math.nan, "n is above 0, got nan"),
        (require_seconds, "2", "n is a number of seconds, got '2'"),
        (require_seconds, math.nan, "n is a number of seconds, got nan"),
        (require_seconds, 10**400, "n is a number of seconds, got one that is too large for a float"),
        (require_seconds, -(10**400), "n is a number of seconds, got one that is too large for a float"),
        (require_path, 5, "n is the path of a file, got int"),
        (require_path, b"a", "n is the path of a file, got bytes"),
    ],
)
def test_what_is_no_such_number_is_refused_in_a_sentence(require, value, sentence):
    with pytest.raises(RecipeError) as info:
        require("n", value)
    assert str(info.value) == sentence


def test_the_error_is_that_of_whoever_asks():
    with pytest.raises(TaskError, match="a task's epochs is at least 1"):
        require_whole("a task's epochs", 0, error=TaskError)
