"""The command `akkordeon compare`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from akkordeon.cli.main import app

OPTIONS = ("--delays", "0,2", "--steps", "6", "--seeds", "2")


def compare(folder, *options):
    return CliRunner().invoke(app, ["compare", "digits", "--out", str(folder), *OPTIONS, *options])


def test_it_prints_a_row_for_each_rule_and_goes_on_from_what_is_there(tmp_path):
    told = compare(tmp_path, "--rules", "stash/sgd,inverse/sgd", "--lrs", "0.01,0.1")
    assert told.exit_code == 0, told.output
    for rule in ("stash/sgd", "inverse/sgd"):
        assert f"{rule}, delay 2, lr 0.01, seed 1000: loss" in told.output
        assert told.output.count(f" {rule} ") == 1
    again = compare(tmp_path, "--rules", "stash/sgd", "--lrs", "0.01,0.1")
    assert "seed" not in again.output
    assert " stash/sgd " in again.output


def test_on_an_engine_it_has_a_column_for_what_is_in_flight(tmp_path):
    told = compare(tmp_path, "--rules", "stash/sgd", "--lrs", "0.01", "--engine", "simulator")
    assert told.exit_code == 0, told.output
    for words in ("1 in flight", "3 in flight", "ms a batch", "τ 0.0"):
        assert words in told.output


def test_it_prints_how_stale_gradients_were_where_that_is_measured(tmp_path):
    told = compare(tmp_path, "--rules", "inverse/sgd", "--lrs", "0.01", "--diagnose-every", "1")
    assert told.exit_code == 0, told.output
    assert told.output.count("cosine") == told.output.count("correction") == 2  # a cell for each delay
    assert "correction 0.333" in told.output  # τ is 0, 1, and then 2 in 4 of 6 batches: half is taken away


def test_what_diverges_on_an_engine_is_in_the_table(tmp_path):
    told = compare(tmp_path, "--rules", "stash/sgd", "--lrs", "1e30", "--engine", "threads", "--steps", "20")
    assert told.exit_code == 0, told.output
    said = "if training diverges"
    assert told.output.replace(said, "").count("diverges") == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--lrs", "fast"), "--lrs is a list of numbers with commas between, got 'fast'"),
        (("--delays", ","), "--delays names nothing"),
        (("--rules", "never/sgd"), "there is no staleness rule 'never'"),
        (("--engine", "threads", "--kind", "drawn"), "delays of the kind 'drawn' are emulated"),
        (("--rules", "stash"), "names no optimizer, as stash/adamw does"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path, options, sentence):
    told = compare(tmp_path, *options)
    assert told.exit_code == 1
    assert sentence in " ".join(told.output.split())
