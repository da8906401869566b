"""The command `akkordeon downpour`: train, keep, measure, replay, and say what cannot be."""

from __future__ import annotations

import json
import re

import pytest
from tests.support.harness import small_network
from typer.testing import CliRunner

from akkordeon.cli.main import app
from akkordeon.core.errors import RecipeError
from akkordeon.experiments.build import build_downpour
from akkordeon.experiments.config import DownpourConfig
from akkordeon.experiments.presets import (
    SERVER_OPTIMIZERS,
    SERVER_RULES,
    server_optimizer_named,
    server_rule_named,
)

DIGITS = ["downpour", "digits", "--replicas", "2", "--epochs", "2"]


def outcome(*arguments: str):
    return CliRunner().invoke(app, [*arguments])


def test_it_trains_replicas_and_says_what_shards_came_to():
    done = outcome(*DIGITS, "--push-every", "4", "--samples-per-replica", "300", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert {"train-0", "train-1", "validate"} == set(report["sentinels"])
    assert [gate["name"] for gate in report["gates"]] == ["shard/0", "shard/1", "shard/2"]
    assert report["batches"]["trained"] == 2 * 2 * 10  # replicas, epochs, batches of 32 in 300 samples
    assert report["gates"][0]["version"] == 2 * 5


def test_what_it_keeps_is_measured_as_any_network(tmp_path):
    kept = outcome(*DIGITS, "--out", str(tmp_path), "--json")
    assert kept.exit_code == 0, kept.output
    last = json.loads(kept.stdout.splitlines()[-1])["sentinels"]["validate"]
    again = outcome("test", str(tmp_path), "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["scores"] == last["scores"]


def test_the_best_weights_are_kept_and_training_stops_when_nothing_gets_better(tmp_path):
    options = ["--keep-best", "loss", "--patience", "2", "--server-lr", "0", "--no-local-step"]
    options += ["--epochs", "1000", "--samples-per-replica", "64", "--server-optimizer", "sgd"]
    done = outcome(*DIGITS[:4], *options, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["sentinels"]["train-0"]["rounds"] < 1000
    assert outcome("test", str(tmp_path), "--best").exit_code == 0


def test_what_it_records_is_replayed(tmp_path):
    file = str(tmp_path / "run.gz")
    assert outcome(*DIGITS, "--record", file, "--samples-per-replica", "200").exit_code == 0
    again = outcome("replay", file)
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    "options",
    [
        ["--push", "differences", "--push-every", "4", "--server-optimizer", "delayed-nesterov"],
        ["--staleness", "dc-adaptive", "--no-local-step", "--server-optimizer", "sgd"],
        ["--staleness", "inverse", "--max-staleness", "5", "--fetch", "wait", "--compression", "int8"],
        ["--push", "differences", "--server-optimizer", "nesterov", "--steps-by-speed", "--warm-start", "3"],
        ["--max-shard-bytes", "4000", "--fetch-compression", "int8"],
    ],
    ids=" ".join,
)
def test_settings_reach_the_recipe(options):
    done = outcome(*DIGITS, "--samples-per-replica", "100", *options)
    assert done.exit_code == 0, done.output


def test_a_large_position_is_split_and_kept_recorded_and_replayed_as_a_whole_one(tmp_path):
    file = str(tmp_path / "run.gz")
    split = [*DIGITS, "--samples-per-replica", "200", "--max-shard-bytes", "4000", "--out", str(tmp_path)]
    done = outcome(*split, "--record", file, "--json")
    assert done.exit_code == 0, done.output
    names = [gate["name"] for gate in json.loads(done.stdout.splitlines()[-1])["gates"]]
    assert {"shard/0", "shard/0.1", "shard/0.2", "shard/1", "shard/2"} <= set(names)
    assert outcome("test", str(tmp_path)).exit_code == 0
    assert outcome("replay", file).exit_code == 0


def test_the_ancestors_xor_is_a_task():
    done = outcome(
        "downpour", "xor", "--replicas", "5", "--samples-per-replica", "20", "--server-optimizer", "sgd"
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"^100 batches trained", done.stdout, re.MULTILINE)


def test_what_cannot_be_is_one_sentence():
    done = outcome(*DIGITS, "--staleness", "dc-adaptive")
    assert done.exit_code == 1
    assert "use push_every=1 and local_step=False" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("optimizer", SERVER_OPTIMIZERS)
@pytest.mark.parametrize("rule", SERVER_RULES)
def test_every_server_optimizer_and_rule_has_a_name(optimizer, rule):
    config = DownpourConfig(replicas=3, server_optimizer=optimizer, staleness=rule, local_step=False)
    recipe = build_downpour(small_network(), config)
    for spawn in recipe.spawns(0):
        spawn.make()


def test_unknown_names_are_told_with_the_known_ones():
    with pytest.raises(RecipeError, match="no server optimizer 'lion'; there are adagrad, sgd"):
        server_optimizer_named("lion", None, 2)
    with pytest.raises(RecipeError, match="'server_optimizer' cannot be 'lion'; there are adagrad, sgd"):
        DownpourConfig(server_optimizer="lion")
    with pytest.raises(RecipeError, match="no staleness rule 'latest'; there are age-weighted, annealed"):
        server_rule_named("latest")
    with pytest.raises(RecipeError, match="'staleness' cannot be 'latest'; there are age-weighted, annealed"):
        DownpourConfig(staleness="latest")
