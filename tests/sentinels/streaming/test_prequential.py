"""Scores of a stream: over all, over the latest, and with weights that fade."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akkordeon.sentinels.streaming.prequential import Prequential

batches = st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 5)), min_size=1, max_size=40)


@given(batches, st.integers(1, 12), st.floats(0.5, 1))
def test_all_three_are_the_means_they_say_they_are(stream, window, factor):
    scores = Prequential(window, factor)
    for value, size in stream:
        scores.add({"loss": value}, size)
    examples = [value for value, size in stream for _ in range(size)]
    assert scores.examples == len(examples)
    assert scores.overall()["loss"] == pytest.approx(math.fsum(examples) / len(examples))
    ends = [sum(size for _, size in stream[i:]) for i in range(len(stream))]
    ages = [end - size for end, (_, size) in zip(ends, stream, strict=True)]
    inside = [pair for pair, age in zip(stream, ages, strict=True) if age < window]
    mean = math.fsum(v * n for v, n in inside) / sum(n for _, n in inside)
    assert scores.window()["loss"] == pytest.approx(mean)
    weights = [size * factor**age for (_, size), age in zip(stream, ages, strict=True)]
    faded = math.fsum(w * v for w, (v, _) in zip(weights, stream, strict=True)) / math.fsum(weights)
    assert scores.fading()["loss"] == pytest.approx(faded, abs=1e-9)


def test_what_is_not_finite_is_left_out_and_counted():
    scores = Prequential(3, 0.9)
    scores.add({"loss": 1.0, "accuracy": 1.0}, 1)
    scores.add({"loss": float("nan"), "accuracy": 1.0}, 2)
    assert scores.overall() == scores.window() == {"loss": 1.0, "accuracy": 1.0}
    assert (scores.examples, scores.unscored) == (1, 2)


def test_before_the_first_there_is_nothing_to_tell():
    scores = Prequential(3, 0.9)
    assert scores.overall() == scores.window() == scores.fading() == {}


@given(batches, batches)
def test_another_one_goes_on_from_its_state_as_it_would_have_gone_on(before, after):
    one, other = Prequential(4, 0.9), Prequential(4, 0.9)
    for value, size in before:
        one.add({"loss": value}, size)
    other.go_on_from(json.loads(json.dumps(one.state())))
    for value, size in after:
        one.add({"loss": value}, size)
        other.add({"loss": value}, size)
    assert one.state() == other.state()
    assert (one.window(), one.fading()) == (other.window(), other.fading())
