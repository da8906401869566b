"""Schedules through one world: what must come out where it can be worked out by hand."""

from __future__ import annotations

import inspect

import pytest
from tests.support.timetables import draw

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Attach
from akkordeon.engines.simulator.compute import Cost, Slowdown
from akkordeon.engines.simulator.faults import Crash
from akkordeon.engines.simulator.links import Link
from akkordeon.engines.timeline import Timeline
from akkordeon.experiments.schedules.compare import asynchronous, compare, enough_in_flight
from akkordeon.experiments.schedules.dry_actors import dry_row
from akkordeon.experiments.schedules.synchronous import data_parallel, in_lockstep
from akkordeon.experiments.schedules.timetable import Op, Slot
from akkordeon.experiments.schedules.world import World

COST = Cost(forward_s=1.0, backward_s=2.0)


def world_of(gates=4, **options):
    return World(costs=[COST] * gates, **{"seconds": 10_000, **options})


def test_one_device_does_everything_one_after_the_other():
    outcome = in_lockstep(world_of(), "one device", micros=4)
    assert outcome.samples_per_s == pytest.approx(1 / (4 * 3), rel=0.01)
    assert outcome.utilisation == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_a_flush_costs_the_bubble(name):
    outcome = in_lockstep(world_of(), name, micros=8)
    assert outcome.samples_per_s == pytest.approx(8 / (8 + 3) / 3, rel=0.01)
    assert 1 - outcome.utilisation == pytest.approx(3 / 11, abs=0.01)


def test_an_asynchronous_row_is_as_fast_as_its_slowest_gate():
    outcome = asynchronous(world_of(), in_flight=8)
    assert outcome.samples_per_s == pytest.approx(1 / 3, rel=0.01)
    assert outcome.utilisation == pytest.approx(1, abs=0.01)


def test_an_asynchronous_row_looks_as_its_docstring_draws_it():
    timeline = Timeline()
    world = World(costs=[Cost(forward_s=1, backward_s=1)] * 3, seconds=14)
    asynchronous(world, in_flight=3, timeline=timeline)
    slots = [
        Slot(int(s.who[-1]), Op("F" if s.what == "forward" else "B", 0, s.batch), s.begin_s, s.end_s)
        for s in timeline.spans
    ]
    drawn = inspect.getdoc(asynchronous).partition("::\n\n")[2].partition("\n\n")[0]
    assert draw(slots).splitlines() == [line.strip() for line in drawn.splitlines()]


def test_one_batch_in_flight_is_one_device():
    outcome = asynchronous(world_of(), in_flight=1)
    assert outcome.samples_per_s == pytest.approx(1 / (4 * 3), rel=0.01)
    assert all(set(seen) == {0} for seen in outcome.staleness)


def test_staleness_grows_towards_the_head_and_stays_below_the_batches_in_flight():
    outcome = asynchronous(world_of(), in_flight=6)
    largest = [max(seen) for seen in outcome.staleness]
    assert largest == sorted(largest, reverse=True)
    assert largest[0] <= 5


def test_data_parallel_workers_wait_for_the_all_reduce():
    world = world_of(link=Link(0.5, bytes_per_s=100.0), weight_bytes=400)
    outcome = data_parallel(world, micros=4)
    reduce_s = 2 * 3 * (0.5 + 400 / 4 / 100)
    assert outcome.samples_per_s == pytest.approx(4 / (4 * 3 + reduce_s), rel=0.01)


def test_links_are_hidden_by_batches_in_flight_and_by_no_more_than_needed():
    world = world_of(link=Link(latency_s=3.0), seconds=3000)
    enough = enough_in_flight(world, most=64)
    assert asynchronous(world, enough).samples_per_s >= 0.95 * asynchronous(world, 64).samples_per_s
    assert asynchronous(world, enough - 1).samples_per_s < 0.95 * asynchronous(world, 64).samples_per_s
    round_trip_s = 4 * 3 + 8 * 3.0  # work, and eight hops of which the sentinel's to the last gate takes none
    assert enough == pytest.approx(round_trip_s / 3, abs=2)


def test_a_straggler_holds_up_whoever_waits_for_it():
    slow = world_of(slowdowns=[Slowdown("gate/1", 5, share=0.1, phase_s=20.0)])
    even = compare(world_of(), in_flight=16, micros=8)
    held = compare(slow, in_flight=16, micros=8)
    assert [o.schedule for o in held] == ["one device", "gpipe", "1f1b", "data parallel", "asynchronous"]
    for before, after in zip(even[1:], held[1:], strict=True):
        assert after.samples_per_s < 0.95 * before.samples_per_s


def test_after_a_crash_the_asynchronous_row_begins_again_and_counts_what_is_lost():
    world = world_of(faults=[Crash(who="gate/2", at_s=500.0, back_after_s=100.0)], checkpoint_every_s=50)
    outcome = asynchronous(world, in_flight=8)
    assert outcome.lost == 8
    assert outcome.samples_per_s == pytest.approx((10_000 - 100) / 10_000 / 3, rel=0.02)
    assert outcome.redone <= 50 / 3 + 1  # what one of four gates did since the last checkpoint


def test_after_a_crash_a_synchronous_row_goes_back_to_its_checkpoint():
    world = world_of(faults=[Crash(who="gate/2", at_s=990.0, back_after_s=100.0)], checkpoint_every_s=500)
    whole, crashed = (in_lockstep(p, "1f1b", 8) for p in (world_of(), world))
    assert crashed.redone == pytest.approx(490 / 33 * 8, abs=16)
    assert whole.samples - crashed.samples == pytest.approx((100 + 490) / 33 * 8, abs=24)


def test_a_crash_without_return_ends_all_schedules():
    world = world_of(faults=[Crash(who="gate/2", at_s=5000.0)])
    for outcome in compare(world, in_flight=8, micros=8):
        assert outcome.samples <= 5000 / 3


def test_the_same_world_gives_the_same_outcome():
    world = world_of(faults=[Crash(who="gate/*", every_s=200, back_after_s=5)],
                 slowdowns=[Slowdown("*", 3, 0.2)], seconds=2000)  # fmt: skip
    first, second = (compare(world, 8, 8) for _ in range(2))
    assert [o.as_json() for o in first] == [o.as_json() for o in second]


def test_dry_actors_keep_to_the_protocol():
    """Versions, staleness and counts are those of real gates on the same schedule."""
    engine = ak.Simulator()
    engine.start(lambda record: None, 0)
    row = dry_row(engine.spawn, gates=3, sentinels=2, in_flight=4, batches=50)
    for address in row.trainers:
        engine.send(address, Attach())
    engine.wait_until(lambda: False, 1.0)
    assert all(trainer.ended for trainer in row.trainers.values())
    assert row.trained == 100
    for gate in row.gates.values():
        assert gate.version == sum(gate.staleness_seen.values()) == 100
        assert gate.stash == {}


@pytest.mark.parametrize("options", [{"costs": []}, {"samples": 0}, {"seconds": 0}])
def test_what_is_no_world_is_refused(options):
    with pytest.raises(RecipeError):
        World(**{"costs": [COST], **options})
