"""Traces: what a viewer of Chrome's format finds in them, and that all engines can leave one."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from itertools import pairwise

import pytest
import torch
from tests.support.engines import NAMES, warm_engine
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import DataError
from akkordeon.core.messages import Batch, Forward
from akkordeon.engines.simulator import Compute, Cost
from akkordeon.engines.timeline import Span, Timeline
from akkordeon.engines.timeline.chrome_trace import trace_events, write_trace

ROUND_TRIP = [
    Span("gate/0", "forward", 7, 10.0, 10.5, "Forward", "sentinel/t#1", "a"),
    Span("gate/1", "forward", 7, 10.5, 10.75, "Forward", "sentinel/t#1", "b"),
    Span("gate/1", "backward", 7, 11.0, 11.25, "Backward", "sentinel/t#1", "b"),
    Span("gate/0", "backward", 7, 11.25, 12.0, "Backward", "sentinel/t#1", "a"),
    Span("gate/0", "other", None, 12.0, 12.5, "Probe", "", "a"),
]


def of_kind(kind, spans=ROUND_TRIP):
    return [event for event in trace_events(spans) if event["ph"] == kind]


def test_a_span_has_its_time_in_microseconds_from_the_first_and_says_whose_batch_it_was():
    first, second, *_, probe = of_kind("X")
    assert (first["ts"], first["dur"]) == (0, 500_000)
    assert (second["ts"], second["dur"]) == (500_000, 250_000)
    assert first["name"] == "Forward"
    assert first["args"] == {"batch": 7, "sentinel": "sentinel/t#1"}
    assert probe["name"] == "Probe"
    assert "args" not in probe


def test_a_process_is_a_host_and_a_thread_is_an_actor():
    names = {event["pid"]: event["args"]["name"] for event in of_kind("M") if event["name"] == "process_name"}
    assert sorted(names.values()) == ["a", "b"]
    lanes = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in of_kind("M")
        if event["name"] == "thread_name"
    }
    found = {(names[e["pid"]], lanes[e["pid"], e["tid"]]) for e in of_kind("X")}
    assert found == {("a", "gate/0"), ("b", "gate/1")}


def test_lanes_are_in_the_order_of_the_row():
    spans = [Span(who, "forward", 0, 0.0, 1.0) for who in ("sentinel/a", "gate/10", "gate/2")]
    names = [e["args"]["name"] for e in of_kind("M", spans) if e["name"] == "thread_name"]
    orders = [e["args"]["sort_index"] for e in of_kind("M", spans) if e["name"] == "thread_sort_index"]
    assert names == ["gate/2", "gate/10", "sentinel/a"]
    assert orders == sorted(orders)


def test_arrows_lead_a_batch_from_actor_to_actor():
    begins, ends = of_kind("s"), of_kind("f")
    assert [e["id"] for e in begins] == [e["id"] for e in ends] == [1, 2]
    ways = [(one["ts"], other["ts"]) for one, other in zip(begins, ends, strict=True)]
    assert ways == [(0, 500_000), (1_000_000, 1_250_000)]


def test_batches_of_one_number_of_two_sentinels_are_two():
    spans = [
        Span("gate/0", "forward", 7, 0.0, 1.0, "Forward", "sentinel/a#1"),
        Span("gate/1", "forward", 7, 1.0, 2.0, "Forward", "sentinel/b#1"),
    ]
    assert of_kind("s", spans) == []


def test_a_fault_without_an_end_lasts_to_the_end_of_the_trace():
    spans = [Span("gate/0", "forward", 1, 0.0, 4.0), Span("gate/0", "crash", None, 1.0, None)]
    _, crash = of_kind("X", spans)
    assert (crash["name"], crash["cat"], crash["ts"], crash["dur"]) == ("crash", "fault", 1e6, 3e6)


def test_a_trace_of_nothing_is_one():
    assert list(trace_events([])) == []


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_is_written_as_one_json_object(name, tmp_path):
    write_trace(ROUND_TRIP, tmp_path / name)
    opened = gzip.open(tmp_path / name) if name.endswith("gz") else open(tmp_path / name)  # noqa: SIM115
    with opened as file:
        assert json.load(file)["traceEvents"] == list(trace_events(ROUND_TRIP))


def test_a_trace_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(DataError, match=r"t.json cannot be written: No such file"):
        Timeline().write_trace(tmp_path / "absent" / "t.json")


def simulator():
    return ak.Simulator(compute=Compute({"gate/*": Cost(forward_s=1.0, backward_s=2.0)}), timeline=True)


def on_ray():
    engine = warm_engine()
    engine.timeline = Timeline(latest=True)
    return engine


WITH_TIMELINES = {
    "threads, 1 worker": lambda: ak.Threads(1, timeline=True),
    "threads, 2 workers": lambda: ak.Threads(2, timeline=True),
    "simulator": simulator,
    "ray": on_ray,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_timeline_of_any_engine_has_each_batch_at_each_gate(name, tmp_path):
    engine = WITH_TIMELINES[name]()
    began_s = engine.now_s()
    with ak.run(small_network(), engine) as session:
        session.attach(ak.Sentinel.train(batches_of(5), cross_entropy, name="t")).wait(2 * WAIT_S)
    spans = engine.timeline.spans
    for gate in ("gate/0", "gate/1", "gate/2"):
        for what in ("forward", "backward"):
            own = [span for span in spans if (span.who, span.what) == (gate, what)]
            counts = Counter(span.batch for span in own)
            assert len(counts) == 5
            assert set(counts.values()) == {1}
            assert {span.sender for span in own} == {"sentinel/t#1"}
            assert all(began_s - 1 < span.begin_s < span.end_s < engine.now_s() + 1 for span in own)
    engine.timeline.write_trace(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == len(spans)


def test_what_one_actor_does_never_overlaps():
    engine = ak.Threads(2, timeline=True)
    with ak.run(small_network(), engine) as session:
        session.attach(ak.Sentinel.train(batches_of(20), cross_entropy, in_flight=4)).wait(WAIT_S)
    for who in ("gate/0", "gate/1", "gate/2"):
        own = sorted((s for s in engine.timeline.spans if s.who == who), key=lambda span: span.begin_s)
        assert all(one.end_s <= other.begin_s for one, other in pairwise(own))


def test_virtual_time_is_in_the_trace_of_a_simulation():
    engine = simulator()
    with ak.run(small_network(), engine) as session:
        session.attach(ak.Sentinel.train(batches_of(1), cross_entropy)).wait(WAIT_S)
    spans = [span for span in engine.timeline.spans if span.batch is not None]
    assert [(s.who, s.what, s.end_s - s.begin_s) for s in spans] == [
        *((f"gate/{i}", "forward", pytest.approx(1.0)) for i in range(3)),
        *((f"gate/{i}", "backward", pytest.approx(2.0)) for i in (2, 1, 0)),
    ]


def test_without_a_timeline_nothing_is_kept():
    assert ak.Threads().timeline is None
    assert ak.Simulator().timeline is None


def test_a_timeline_keeps_no_payload():
    timeline, payload = Timeline(), torch.zeros(1)
    timeline.add("gate/0", Forward(Batch("s", 1), payload), 0.0, 1.0)
    assert sys.getrefcount(payload) == 2
