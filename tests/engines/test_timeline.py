"""Timelines show every actor its lane, and what happened in it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Backward, Batch, Forward, Probe
from akkordeon.engines.timeline import Span, Timeline
from akkordeon.engines.timeline.drawing import COLOURS, svg

SVG = "{http://www.w3.org/2000/svg}"


def two_gates():
    timeline = Timeline()
    x, batch = torch.zeros(1), Batch("sentinel/t#1", 77)
    timeline.add("gate/0", Forward(batch, x), 0.0, 2.0)
    timeline.add("gate/1", Forward(batch, x), 2.0, 4.0)
    timeline.add("gate/1", Backward(batch, x), 4.0, 8.0)
    timeline.add("gate/1", Probe(1), 8.0, 8.0)
    timeline.fault("gate/0", "crash", 5.0, None)
    return timeline


def test_spans_are_what_was_done_and_what_took_no_time_is_left_out():
    assert two_gates().spans == [
        Span("gate/0", "forward", 77, 0.0, 2.0, "Forward", "sentinel/t#1"),
        Span("gate/1", "forward", 77, 2.0, 4.0, "Forward", "sentinel/t#1"),
        Span("gate/1", "backward", 77, 4.0, 8.0, "Backward", "sentinel/t#1"),
        Span("gate/0", "crash", None, 5.0, None),
    ]


def test_a_picture_has_a_box_for_each_span_a_lane_for_each_actor_and_a_legend():
    root = ElementTree.fromstring(svg(two_gates().spans, "Two gates"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "Two gates" in texts
    assert {"gate/0", "gate/1", "forward", "backward", "crash", "idle"} <= set(texts)
    assert texts.count("77") == 3
    titled = [element for element in root.iter(f"{SVG}rect") if len(element)]
    boxes = {element[0].text: element for element in titled}
    assert set(boxes) == {"gate/0 forward 77", "gate/1 forward 77", "gate/1 backward 77", "gate/0 crash"}
    wide, narrow = (float(boxes[f"gate/1 {what} 77"].get("width")) for what in ("backward", "forward"))
    assert wide == pytest.approx(2 * narrow)
    assert boxes["gate/0 crash"].get("fill") == COLOURS["crash"]
    assert float(boxes["gate/0 crash"].get("width")) == pytest.approx(1200 * 3 / 8)  # to the end


def test_a_picture_shrinks_as_a_whole():
    root = ElementTree.fromstring(svg(two_gates().spans))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"


def test_a_window_cuts_what_is_outside_it():
    root = ElementTree.fromstring(svg(two_gates().spans, "", 3.0, 4.5))
    titles = [element[0].text for element in root.iter(f"{SVG}rect") if len(element)]
    assert titles == ["gate/1 forward 77", "gate/1 backward 77"]


@pytest.mark.parametrize("end_s", [1e-12, 0.3, 1.0, 9.0, 1e12, 1e300])
def test_an_axis_has_a_few_marks_whatever_its_length(end_s):
    root = ElementTree.fromstring(svg(two_gates().spans, "", 0.0, end_s))
    marks = [line for line in root.iter(f"{SVG}line") if line.get("x1") == line.get("x2")]
    assert 4 <= len(marks) <= 11


def test_lanes_are_in_the_order_of_the_row():
    spans = [Span(f"gate/{i}", "forward", 0, 0.0, 1.0) for i in (10, 2, 0)]
    root = ElementTree.fromstring(svg([Span("sentinel/a", "other", None, 0.0, 1.0), *spans]))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert [text for text in texts if text and "/" in text] == ["gate/0", "gate/2", "gate/10", "sentinel/a"]


def test_names_cannot_break_the_picture():
    ElementTree.fromstring(svg([Span("sentinel/<&>", "forward", 1, 0.0, 1.0)], "a < b & c"))


def test_a_telling_stretch_is_around_the_first_fault():
    timeline = Timeline()
    x = torch.zeros(1)
    for i in range(1000):
        timeline.add("gate/0", Forward(Batch("s", i), x), i, i + 0.5)
    assert timeline.notable_stretch(boxes=30) == (0.0, 29.5)
    timeline.fault("gate/0", "freeze", 500.0, 510.0)
    assert timeline.notable_stretch() == (490.0, 530.0)


def test_a_timeline_is_bounded():
    timeline = Timeline(spans_max=3)
    for i in range(10):
        timeline.add("a", Probe(i), i, i + 1)
    assert [span.begin_s for span in timeline.spans] == [0, 1, 2]


def test_a_timeline_of_the_latest_drops_what_is_oldest():
    timeline = Timeline(spans_max=3, latest=True)
    for i in range(10):
        timeline.add("a", Probe(i), i, i + 1)
    assert [span.begin_s for span in timeline.spans] == [7, 8, 9]


def test_what_another_process_did_is_at_its_host_by_the_clock_of_this_one():
    timeline, there, later = two_gates(), Timeline(), Timeline()
    own = timeline.spans
    there.add("gate/2", Probe(1), 1.0, 2.0)
    there.fault("gate/2", "crash", 3.0, None)
    timeline.extend("host", there.raw, 100.0)
    assert timeline.spans == [
        *own,
        Span("gate/2", "other", None, 101.0, 102.0, "Probe", host="host"),
        Span("gate/2", "crash", None, 103.0, None, host="host"),
    ]
    later.add("gate/2", Probe(2), 5.0, 6.0)
    timeline.extend("host", later.raw, 100.0)  # of the next session: it does not grow without end
    assert [span.begin_s for span in timeline.spans if span.host] == [105.0]


def test_a_timeline_of_nothing_is_refused():
    with pytest.raises(RecipeError, match="spans_max is at least 1, got 0"):
        Timeline(0)


def test_a_message_that_is_not_what_it_says_is_kept_without_its_batch():
    timeline = Timeline()
    timeline.add("gate/0", Forward("no batch", None), 0.0, 1.0)
    timeline.add("gate/0", Forward(Batch("s", ["no", "number"]), None), 1.0, 2.0)
    assert [(span.message, span.batch, span.sender) for span in timeline.spans] == [("Forward", None, "")] * 2


def test_seconds_along_the_axis_are_virtual_where_nobody_says_otherwise():
    assert "virtual s" in svg(two_gates().spans)
    assert "virtual" not in svg(two_gates().spans, time="")
