"""A staleness rule is one file: that of docs/extending.md, added to a copy of the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import akkordeon as ak
from akkordeon.cli.main import app
from akkordeon.pipeline.staleness.named import RULES

ROOT = Path(__file__).parents[2]
LINES_MAX = 30

ASK_ALL = """
import json, sys
from typer.testing import CliRunner
from akkordeon.cli.main import app

def output(*words, **environment):
    env = {"COLUMNS": "300", "TERM": "dumb", **environment}
    return CliRunner().invoke(app, words, env=env, prog_name="akkordeon").output

words = "akkordeon train --staleness disc"
typed = {"_AKKORDEON_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
json.dump({
    "train": output("train", "digits", "--epochs", "1", "--take", "64", "--staleness", "discounted"),
    "compare": output(
        "compare", "digits", "--out", sys.argv[1], "--rules", "stash/sgd,discounted-half/sgd",
        "--delays", "1", "--lrs", "0.01", "--steps", "3", "--seeds", "1"),
    "help of train": output("train", "--help"),
    "help of compare": output("compare", "--help"),
    "help of downpour": output("downpour", "--help"),
    "completion": output(**typed),
}, sys.stdout)
"""


def documented_file() -> str:
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    (file,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "class Discounted" in block
    )
    return file


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    """What the command line of a package with this one file more says."""
    folder = tmp_path_factory.mktemp("package")
    package = folder / "akkordeon"
    shutil.copytree(Path(ak.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "pipeline/staleness/discounted.py").write_text(documented_file(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ASK_ALL, str(folder / "study")],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path(ak.__file__).parents[1]}"},
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_the_file_is_short():
    assert len(documented_file().splitlines()) <= LINES_MAX


def test_the_rule_trains_by_its_name(told):
    assert "batches trained in" in told["train"]


def test_the_rule_is_compared_by_its_name(told):
    assert "discounted-half/sgd, delay 1, lr 0.01, seed 0: loss" in told["compare"]


@pytest.mark.parametrize("command", ["train", "compare", "downpour"])
def test_the_rule_is_in_the_help(told, command):
    assert "discounted" in told[f"help of {command}"]
    assert "discounted-half" in told[f"help of {command}"]


def test_the_shell_completes_the_rule(told):
    assert {"discounted", "discounted-half"} <= set(told["completion"].split())


def test_this_package_does_not_have_it():
    assert "discounted" not in RULES


def test_help_of_compare_names_all_rules():
    output = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "1000"}).output
    assert all(rule in output for rule in RULES)
