"""Links take the time that latency, bytes and losses take, and never let a message overtake another."""

from __future__ import annotations

from random import Random

import pytest
import torch

from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Backward, Batch, Exported, Forward, Release
from akkordeon.core.messages import CutId as Cut
from akkordeon.engines.simulator.distributions import Constant, Exponential, LogNormal, Uniform
from akkordeon.engines.simulator.links import PRESETS, Ghost, Link, Links, Port, Wire, size_bytes


def wire(*args, **options):
    return Wire(Link(*args, **options), Random(0))


def test_a_message_takes_its_latency_and_its_bytes():
    assert wire(0.5, 100.0).arrival_s(size=200, now_s=1.0) == 1 + 2 + 0.5


def test_a_link_carries_one_message_at_a_time():
    line = wire(0.5, 100.0)
    assert [line.arrival_s(100, 0.0) for _ in range(3)] == [1.5, 2.5, 3.5]
    assert line.arrival_s(100, 10.0) == 11.5
    assert (line.bytes, line.messages, line.busy_s) == (400, 4, 4.0)


def test_wires_of_one_host_share_what_it_sends():
    departures = Port(100.0)
    one, other = (Wire(Link(0.5), Random(0), ports=[departures]) for _ in range(2))
    assert [w.arrival_s(100, 0.0) for w in (one, other, one)] == [1.5, 2.5, 3.5]


def test_a_message_goes_through_two_ports_at_once_and_as_slowly_as_the_slower():
    line = Wire(Link(), Random(0), ports=[Port(100.0), Port(50.0)])
    assert [line.arrival_s(100, 0.0) for _ in range(2)] == [2.0, 4.0]


@pytest.mark.parametrize("latency", [Uniform(0, 1), LogNormal(0.1, 5.0), Exponential(1.0)])
def test_no_message_overtakes_another(latency):
    line = wire(latency, loss=0.2)
    arrivals = [line.arrival_s(5000, i / 100) for i in range(500)]
    assert arrivals == sorted(arrivals)
    assert all(arrival >= i / 100 for i, arrival in enumerate(arrivals))


def test_loss_costs_round_trips_and_no_message():
    whole, lossy = wire(1.0), wire(1.0, loss=0.5)
    assert [whole.arrival_s(1, 1000.0 * i) - 1000 * i for i in range(200)] == [1.0] * 200
    taken = [lossy.arrival_s(1, 1000.0 * i) - 1000 * i for i in range(200)]
    assert set(taken) <= {1.0 + 2.0 * again for again in range(50)}
    assert 2.5 < sum(taken) / 200 < 3.5  # one round trip more on average


def test_the_same_seed_draws_the_same():
    a, b = (Wire(PRESETS["internet"], Random(7)) for _ in range(2))
    assert [a.arrival_s(10_000, i) for i in range(100)] == [b.arrival_s(10_000, i) for i in range(100)]


def test_a_log_normal_has_its_median_and_its_tail():
    rng, distribution = Random(0), LogNormal(median=2.0, p99=10.0)
    drawn = sorted(distribution.draw(rng) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(2.0, rel=0.03)
    assert drawn[19_800] == pytest.approx(10.0, rel=0.1)


def test_the_first_exception_that_fits_two_hosts_is_their_link():
    far, near = Link(0.1), Link(0.001)
    links = Links(near, [("europe", "asia", far), ("europe", "laptop-*", Link(0.02))])
    assert links.find(("a", "europe"), ("b", "asia")) is far
    assert links.find(("b", "asia"), ("a", "europe")) is far
    assert links.find(("laptop-3", "here"), ("a", "europe")).latency_s == 0.02
    assert links.find(("a", "europe"), ("b", "europe")) is near


def test_what_weighs_are_the_tensors_of_a_message():
    batch, cut = Batch("s", 0), Cut("s", 0)
    x = torch.zeros(3, 5)
    assert size_bytes(Forward(batch, x)) == 60
    assert size_bytes(Forward(batch, (x, x.double()))) == 180
    assert size_bytes(Backward(batch, {"a": x, "b": None})) == 60
    assert size_bytes(Backward(batch, None)) == 0
    assert size_bytes(Exported(cut, "gate/0", {"w": x})) == 60
    assert size_bytes(Release(cut)) == 0
    assert size_bytes(Forward(batch, Ghost(1234))) == 1234
    assert size_bytes(Backward(batch, x.to_sparse())) == 0


def test_presets_go_from_near_to_far():
    rng = Random(0)
    latencies = [sum(PRESETS[name].latency_s.draw(rng) for _ in range(500)) for name in PRESETS]
    assert latencies == sorted(latencies)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Link(-1.0),
        lambda: Link(bytes_per_s=0),
        lambda: Link(loss=1.0),
        lambda: Uniform(2, 1),
        lambda: LogNormal(0, 1),
        lambda: Exponential(0),
        lambda: Constant(-1),
    ],
)
def test_what_is_no_link_is_refused(make):
    with pytest.raises(RecipeError):
        make()
