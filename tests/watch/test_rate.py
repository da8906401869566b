"""How fast a number grows."""

from __future__ import annotations

from akkordeon.watch.rate import RATE_OVER_S, Rate


def test_a_rate_is_the_growth_over_the_last_seconds():
    rate = Rate()
    assert rate.per_s == 0.0
    rate.add(0.0, 100)
    assert rate.per_s == 0.0
    rate.add(2.0, 120)
    assert rate.per_s == 10.0
    rate.add(2.0 + RATE_OVER_S, 120)
    assert rate.per_s == 0.0
