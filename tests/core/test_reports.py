"""What records say of themselves."""

from __future__ import annotations

import math

from akkordeon.core.reports import BatchCount, BatchRefused, EpochDone, GateStatus, RoundDone


def test_counts_of_batches_add_up():
    total = BatchCount(5, 3, 1, 1) + BatchCount(2, 2, 0, 0)
    assert total.as_tuple() == (7, 5, 1, 1)


def test_a_gates_status_knows_mean_and_maximum_of_its_staleness():
    def status(staleness):
        return GateStatus(0, "gate/0", "gate/0", 0, 0, 0, 0, staleness, {})

    assert (status({}).staleness_mean, status({}).staleness_max) == (0.0, 0)
    assert (status({0: 3, 4: 1}).staleness_mean, status({0: 3, 4: 1}).staleness_max) == (1.0, 4)


def test_rates_are_per_second_and_infinite_where_no_time_passed():
    assert EpochDone("t", 1, 0.0, {}, 10, 4.0, 0.0, 0).samples_per_s == 2.5
    assert EpochDone("t", 1, 0.0, {}, 10, 0.0, 0.0, 0).samples_per_s == math.inf
    assert RoundDone("v", "validate", 1, 0.0, {}, 10, 4.0, 0).samples_per_s == 2.5
    assert RoundDone("v", "validate", 1, 0.0, {}, 10, 0.0, 0).samples_per_s == math.inf


def test_a_refusal_is_told_in_a_sentence():
    assert str(BatchRefused("tdp", 3, "gate/1", "form", "it is red")) == (
        "gate/1 refused batch 3 of tdp: it is red"
    )
    assert str(BatchRefused("tdp", 3, "tdp", "not_finite", "its loss is nan")) == (
        "tdp refused its own batch 3: its loss is nan"
    )
