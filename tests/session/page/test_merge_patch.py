"""Differences between pictures, in Python and as the page puts them together."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.resources import files

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.pages import applied

from akkordeon.session.page.merge_patch import merge_patch

NAMES = st.text("abc/", min_size=1, max_size=2)
LEAVES = (
    st.integers(-3, 3) | st.text("xy", max_size=2) | st.booleans() | st.lists(st.integers(0, 2), max_size=3)
)
PICTURES = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8),
    max_size=4,
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(PICTURES, PICTURES)
def test_a_patch_makes_one_picture_into_the_other(before, now):
    assert applied(before, merge_patch(before, now)) == now


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(PICTURES)
def test_a_picture_that_is_the_same_needs_no_patch(picture):
    assert merge_patch(picture, picture) == {}


def test_what_changed_alone_is_in_it():
    before = {"gates": {"gate/0": {"version": 1, "name": "a"}, "gate/1": {"version": 1}}, "row": [0, 1]}
    now = {"gates": {"gate/0": {"version": 2, "name": "a"}}, "row": [0]}
    assert merge_patch(before, now) == {"gates": {"gate/0": {"version": 2}, "gate/1": None}, "row": [0]}


ON_NODE = """
import { State } from "./state.mjs";
import { staleness, clock, Rates } from "./numbers.mjs";
const events = JSON.parse(process.argv[2]);
const state = new State();
for (const event of events) state.take(event);
const rates = new Rates();
rates.add("a", 0, 0);
const told = { picture: state.picture, curves: state.curves, log: state.log,
  classes: [0, 1, 2, 3].map(staleness), clock: [clock(59.6), clock(3725)], rate: rates.add("a", 2, 50),
  anew: rates.add("a", 3, 1) };
console.log(JSON.stringify(told));
"""


def told_by_node(folder, events):
    assets = files("akkordeon.session.page").joinpath("assets")
    for name in ("state", "numbers"):
        (folder / f"{name}.mjs").write_bytes(assets.joinpath(f"{name}.js").read_bytes())
    (folder / "told.mjs").write_text(ON_NODE)
    command = ["node", str(folder / "told.mjs"), json.dumps(events)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@needs_node
def test_the_page_puts_events_together_as_they_are_meant(tmp_path):
    pictures = [
        {"a": {"b": 1, "c": [1, 2]}, "d": "x"},
        {"a": {"c": [2]}, "e": {"f": True}},
        {"e": {"f": False}},
    ]
    events, before = [], {}
    for number, picture in enumerate(pictures):
        curves = {"train": {"loss": [[number, 0.5]]}}
        events.append({"picture": merge_patch(before, picture), "curves": curves, "log": [{"n": number}]})
        before = picture
    events.insert(0, {"first": True, "picture": {"gone": 1}, "log": [{"n": 9}]})
    events[1]["first"] = True
    told = told_by_node(tmp_path, events)
    assert told["picture"] == pictures[-1]
    assert told["curves"] == {"loss": {"train": [[0, 0.5], [1, 0.5], [2, 0.5]]}}
    assert told["log"] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert told["classes"] == ["0", "1", "2–3", "4–7"]
    assert told["clock"] == ["1:00", "1:02:05"]
    assert told["rate"] == 25
    assert told["anew"] is None


@needs_node
@pytest.mark.parametrize("name", ["constructor", "__proto__", "toString"])
def test_a_name_that_scripts_give_a_meaning_is_put_together_as_any_other(name, tmp_path):
    picture = {"sentinels": {name: {"state": "at work"}, "other": {}}}
    curves = {name: {"loss": [[1.0, 0.5]], name: [[1.0, 0.25]]}}
    told = told_by_node(tmp_path, [{"first": True, "picture": picture, "curves": curves}])
    assert told["picture"] == picture
    assert told["curves"] == {"loss": {name: [[1.0, 0.5]]}, name: {name: [[1.0, 0.25]]}}


@needs_node
def test_a_browser_forgets_curves_that_go_on_no_more_where_there_are_too_many(tmp_path):
    point = [[1.0, 0.5]]
    events = [{"curves": {"train": {"loss": point}, f"test-{n}": {f"of {n}": point}}} for n in range(300)]
    told = told_by_node(tmp_path, events)
    assert len(told["curves"]["loss"]["train"]) == 300
    assert list(told["curves"])[1:] == [f"of {n}" for n in range(101, 300)]
