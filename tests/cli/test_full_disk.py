"""Training into a disk that is full: it is told, the run goes on, and what is left is good."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.commands import akkordeon, outcome_of

from akkordeon.experiments.run_folder import REPORT, TASK, WEIGHTS
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder

FULL = "No space left on device"
RUN = ["train", "digits", "--epochs", 8, "--json"]


@pytest.fixture
def disk(tmp_path, request):
    """A disk of so many bytes, which is a folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "none", folder]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def assert_trained(done):
    assert outcome_of(done)["sentinels"]["train"]["rounds"] == 8


@pytest.mark.parametrize("disk", ["1600k"], indirect=True)
def test_checkpoints_that_find_no_room_leave_those_before(disk):
    """There is room for weights and two checkpoints; the third is told of, once, and at the end."""
    out = disk / "out"
    options = ["--workers", 1, "--checkpoint-every", "1u", "--out", out]
    done = akkordeon(*RUN, *options, expecting=1)
    assert_trained(done)
    about = [line for line in done.stderr.splitlines() if "checkpoints/" in line]
    assert len(about) == 2
    assert f"checkpoints/000003 cannot be written: {FULL}; training goes on, and the next" in about[0]
    assert about[1].endswith(f"checkpoints/000003 cannot be written: {FULL}")
    assert {WEIGHTS, TASK, REPORT} <= names_in(out)
    assert sorted(os.listdir(out / "checkpoints")) == ["000001", "000002"]
    CheckpointFolder.inside(out).latest(pytest.fail)
    akkordeon("test", out)


@pytest.mark.parametrize("disk", ["60k"], indirect=True)
def test_weights_that_find_no_room_leave_the_report(disk):
    done = akkordeon(*RUN, "--out", disk / "out", expecting=1)
    assert_trained(done)
    assert done.stderr.count(f"{WEIGHTS} cannot be written: {FULL}; training goes on") == 1
    assert "kept in" not in done.stdout
    assert names_in(disk) == {REPORT}
    (*_, last) = (disk / "out" / REPORT).read_text().splitlines()
    assert json.loads(last)["record"] == "Summary"


@pytest.mark.parametrize("disk", ["20k"], indirect=True)
def test_a_record_that_finds_no_room_breaks_off(disk):
    done = akkordeon(*RUN, "--record", disk / "run.record", expecting=1)
    assert_trained(done)
    assert FULL in done.stderr
    refused = akkordeon("replay", disk / "run.record", expecting=1)
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("disk", ["20k"], indirect=True)
def test_where_nothing_finds_room_training_ends_all_the_same(disk):
    out = disk / "out"
    done = akkordeon(
        *RUN, "--checkpoint-every", "50u", "--out", out, "--record", disk / "run.record", expecting=1
    )
    assert_trained(done)
    assert not names_in(disk) & {WEIGHTS, TASK, "manifest.json"}
    refused = akkordeon("resume", out, expecting=1)
    assert f"has no {TASK}" in refused.stderr
