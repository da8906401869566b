"""Runs of a comparison on engines: the same gates and batches, and gradients as late as they come."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tests.experiments.laboratory.test_study import DESIGN, task

from akkordeon.core.errors import RecipeError
from akkordeon.experiments.laboratory.arm import Arm, run_arm
from akkordeon.experiments.laboratory.study import Study

ARM = Arm("line", "stash/sgd", "fixed", 0, 0.05, seed=3, steps=60)
ENGINES = ("threads", "simulator")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_in_flight_has_the_weights_of_a_row_without_delay(engine):
    emulated, real = run_arm(task(3), ARM), run_arm(task(3), replace(ARM, engine=engine))
    assert real.validation == emulated.validation
    assert real.loss == pytest.approx(emulated.loss)
    assert [batch for batch, _ in real.curve] == [batch for batch, _ in emulated.curve]
    assert (real.staleness, real.copies, real.why) == ([0.0, 0.0], [1, 1], None)
    assert real.step_s > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_with_more_in_flight_gradients_are_late_at_the_head(engine):
    found = run_arm(task(3), replace(ARM, engine=engine, delay=3))
    assert 0 < found.staleness[0] <= 3
    assert found.staleness[1] < found.staleness[0]
    assert 1 < found.copies[0] <= 4
    assert math.isfinite(found.validation)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_diverges_says_why(engine):
    found = run_arm(task(3), replace(ARM, engine=engine, lr=1e9))
    assert (found.loss, found.validation) == (math.inf, math.inf)
    assert "refused" in found.why


def test_a_study_on_an_engine_is_not_taken_for_one_of_exact_delays(tmp_path):
    design, told = replace(DESIGN, lrs=(0.05,), seeds=1, steps=10), []
    for engine in (None, "threads", None):
        study = Study(
            task,
            replace(design, engine=engine),
            tmp_path / "arms.jsonl",
            lambda arm, _: told.append((arm.engine, arm.delay)),
        )
        assert len(list(study.cells())) == 2
    assert told == [(None, 0), (None, 2), ("threads", 0), ("threads", 2)]


def test_delays_that_no_engine_would_have_are_refused():
    with pytest.raises(RecipeError, match="of the kind 'drawn' are emulated; on the engine 'threads'"):
        replace(DESIGN, engine="threads", kind="drawn")
