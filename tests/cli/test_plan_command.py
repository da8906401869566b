"""The command `akkordeon plan`, and `akkordeon train --auto`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.planning import costs_of
from typer.testing import CliRunner

from akkordeon.cli.main import app
from akkordeon.experiments.planning.costs import load_costs, save_costs

HOSTS = Path(__file__).parents[2] / "examples/hosts"


def test_it_prints_layouts_and_which_one_it_would_take(tmp_path):
    save_costs(costs_of([0.01, 0.01, 0.02]), tmp_path / "costs.json")
    options = ["--hosts", str(HOSTS / "laptop.toml"), "--costs", str(tmp_path / "costs.json")]
    told = CliRunner().invoke(app, ["plan", "digits", *options, "--json", str(tmp_path / "plan.json")])
    assert told.exit_code == 0, told.output
    assert told.output.count("▶") == 1
    assert "2 gates, 2 batches in flight" in told.output.splitlines()[-1]
    plan = json.loads((tmp_path / "plan.json").read_text())
    best = plan["layouts"][plan["best"]]
    assert best["layout"]["ends"] == [2, 3]
    assert best["memory_bytes"]["laptop"] > 0
    assert plan["why"] in told.output


def test_columns_say_what_is_not_the_same_for_all(tmp_path):
    save_costs(costs_of([0.001, 0.1, 0.001], workers=2, threaded_s=0.2), tmp_path / "costs.json")
    plan = ["plan", "digits", "--costs", str(tmp_path / "costs.json"), "--hosts"]
    here, apart = (
        CliRunner().invoke(app, [*plan, str(HOSTS / f"{name}.toml")]) for name in ("laptop", "far_apart")
    )
    assert "threads" in here.output
    assert "1 gate with 2 intra-op threads" in here.output.splitlines()[-1]
    assert "hosts" not in here.output
    assert "hosts" in apart.output
    assert "int8" in apart.output


def test_schedules_are_proposed_where_they_are_asked_for(tmp_path):
    save_costs(costs_of([0.01, 0.01, 0.02]), tmp_path / "costs.json")
    plan = ["plan", "digits", "--costs", str(tmp_path / "costs.json")]
    told = CliRunner().invoke(app, [*plan, "--schedules", "async,flush,2bw"])
    assert told.exit_code == 0, told.output
    assert "8 flush" in told.output
    assert "8 2bw" in told.output
    wrong = CliRunner().invoke(app, [*plan, "--schedules", "gpipe"])
    assert wrong.exit_code == 1
    assert "there is no schedule 'gpipe'" in " ".join(wrong.output.split())


def test_costs_that_are_not_there_are_told(tmp_path):
    done = CliRunner().invoke(app, ["plan", "digits", "--costs", str(tmp_path / "none.json")])
    assert done.exit_code == 1
    assert "none.json cannot be read" in done.output.replace("\n", "")


@pytest.mark.slow
def test_it_keeps_what_it_measured_and_training_takes_the_best(tmp_path):
    file = tmp_path / "costs.json"
    told = CliRunner().invoke(app, ["plan", "digits", "--save-costs", str(file)])
    assert told.exit_code == 0, told.output
    assert len(load_costs(file).blocks) == 3
    done = CliRunner().invoke(app, ["train", "digits", "--auto", "--epochs", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["batches"]["refused"] == 0
