"""Scenarios and records on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from akkordeon.cli.main import app
from akkordeon.core.errors import ScenarioError
from akkordeon.engines.simulator.distributions import LogNormal, Uniform
from akkordeon.engines.simulator.links import PRESETS
from akkordeon.experiments.scenario import load_scenario

SCENARIOS = sorted((Path(__file__).parents[2] / "examples/scenarios").glob("*.toml"))


def command(*arguments, expect=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == expect, done.output
    return done.output


def written(folder, text):
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


DRY = """
title = "small"
seconds = 20
[row]
gates = 3
in_flight = 4
micros = 6
[cost]
forward_s = 0.1
backward_s = 0.2
[link]
latency_s = 0.05
"""

REAL = """
title = "digits"
[train]
task = "digits"
epochs = 1
in_flight = 3
[cost]
forward_s = 0.001
backward_s = 0.002
[link]
preset = "zone"
"""


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenarios_of_the_examples_can_be_read(path):
    assert load_scenario(path).title


def test_a_dry_scenario_compares_schedules(tmp_path):
    output = command("simulate", written(tmp_path, DRY), "--json")
    report = json.loads(output.splitlines()[-1])
    names = [schedule["schedule"] for schedule in report["schedules"]]
    assert names == ["one device", "gpipe", "1f1b", "data parallel", "asynchronous"]
    for name in names:
        assert name in output
    by_name = {schedule["schedule"]: schedule for schedule in report["schedules"]}
    assert by_name["asynchronous"]["samples_per_s"] > by_name["1f1b"]["samples_per_s"]
    assert by_name["asynchronous"]["staleness"][0]
    assert by_name["asynchronous"]["bytes"].keys() >= {"gate/0 > gate/1", "gate/1 > gate/0"}


def test_a_real_scenario_trains_in_virtual_time_and_is_the_same_each_time(tmp_path):
    path = written(tmp_path, REAL)
    reports = [json.loads(command("simulate", path, "--json").splitlines()[-1]) for _ in range(2)]
    assert reports[0] == reports[1]
    report = reports[0]
    assert report["batches"]["trained"] == report["batches"]["sent"] > 0
    assert report["history"][0]["sentinel"] == "train"
    assert 0 < report["history"][0]["at_s"] < report["seconds"] + 1e-9
    assert 0 < report["utilisation"]["gate/0"] <= 1
    other = json.loads(command("simulate", path, "--json", "--seed", 5).splitlines()[-1])
    assert other["seconds"] != report["seconds"]


def test_costs_can_be_worked_out_or_measured(tmp_path):
    given = "[cost]\nforward_s = 0.001\nbackward_s = 0.002"
    for other in ("[cost]\nflops_per_s = 1e9\nbytes_per_s = 1e9", "[cost]\nmeasure = 8"):
        output = command("simulate", written(tmp_path, REAL.replace(given, other)), "--json")
        costs = json.loads(output.splitlines()[-1])["costs_s"]
        assert costs["gate/0"]["Forward"][0] > 0
        assert costs["gate/0"]["Backward"] != costs["gate/2"]["Backward"]


def test_a_timeline_is_drawn(tmp_path):
    command("simulate", written(tmp_path, DRY), "--timeline", tmp_path / "t.svg")
    assert (tmp_path / "t.svg").read_text().startswith("<svg")
    command("simulate", written(tmp_path, REAL), "--timeline", tmp_path / "u.svg", "--window", 0, 0.01)
    assert "backward" in (tmp_path / "u.svg").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--timeline", "{}/none/t.svg"), "t.svg cannot be written: No such file or directory"),
        (
            ("--timeline", "{}/t.svg", "--window", 5, 1),
            "--window goes from a time to a later one, got 5",
        ),
        (("--timeline", "{}/t.svg", "--window", "nan", 1), "a later one, got nan to 1"),
        (("--timeline", "{}/t.svg", "--window", 0, "inf"), "a later one, got 0 to inf"),
    ],
)
def test_a_timeline_that_cannot_be_drawn_is_refused_before_anything_is_computed(tmp_path, options, said):
    arguments = [str(option).format(tmp_path) for option in options]
    result = CliRunner().invoke(app, ["simulate", str(written(tmp_path, DRY)), *arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith("akkordeon: ")
    assert said in result.stderr
    assert not result.stdout


def test_a_simulation_and_a_training_can_be_recorded_and_replayed(tmp_path):
    command("simulate", written(tmp_path, REAL), "--record", tmp_path / "r")
    assert "messages replayed to the same bits" in command("replay", tmp_path / "r")
    command("train", "digits", "--epochs", 1, "--workers", 2, "--record", tmp_path / "s")
    outcome = json.loads(command("replay", tmp_path / "s", "--json").splitlines()[-1])
    assert outcome["messages"] > 100


def test_a_record_of_something_else_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "r").write_bytes(b"nothing")
    assert "is not a record" in command("replay", tmp_path / "r", expect=1)


def test_links_are_presets_or_described(tmp_path):
    text = DRY.replace("latency_s = 0.05", 'preset = "internet"')
    assert load_scenario(written(tmp_path, text)).links.default is PRESETS["internet"]
    text = DRY.replace("latency_s = 0.05", "latency_s = 0.05\np99_s = 0.2\nbytes_per_s = 1e6\nloss = 0.01")
    link = load_scenario(written(tmp_path, text)).links.default
    assert (link.latency_s, link.bytes_per_s, link.loss) == (LogNormal(0.05, 0.2), 1e6, 0.01)
    text = DRY.replace("latency_s = 0.05", "latency_s = 0.05\nlatency_max_s = 0.2")
    assert load_scenario(written(tmp_path, text)).links.default.latency_s == Uniform(0.05, 0.2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("[row]", "[rows]"), r"either \[row\]"),
        (("gates = 3", "gate = 3"), r"\[row\] has no 'gate'"),
        (("forward_s", "forwards"), r"\[cost\] has no 'forwards'"),
        (("latency_s = 0.05", 'preset = "moon"'), "'moon'"),
        (("title", "titel"), "nothing is known of titel"),
        (("[link]", "[[crash]]\nwho = 'a'\n[link]"), "at_s a time or every_s"),
        (("in_flight = 4", "schedules = ['soon']"), "no schedule 'soon'"),
        (("gates = 3", "gates = "), "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_scenario_is_named(tmp_path, change, sentence):
    path = written(tmp_path, DRY.replace(*change))
    with pytest.raises(ScenarioError, match=sentence):
        load_scenario(path)
    command("simulate", path, expect=1)


def test_a_scenario_that_is_not_there_is_named(tmp_path):
    assert "none.toml cannot be read: No such file" in command("simulate", tmp_path / "none.toml", expect=1)
