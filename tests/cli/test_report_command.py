"""The command that shows runs side by side."""

from __future__ import annotations

import json

import pytest
from tests.support.commands import QUICK, akkordeon
from tests.support.kept import written

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[figures]'")


def test_what_training_keeps_is_all_that_a_report_needs(tmp_path):
    out, page, figures = tmp_path / "run", tmp_path / "page.html", tmp_path / "figures"
    akkordeon("train", *QUICK, "--out", out)
    done = akkordeon("report", out, "--out", page, "--figures", figures)
    assert f"report of 1 run in {page}" in done.stdout
    html = page.read_text(encoding="utf-8")
    assert "gate/0 forward" in html, "the timeline has what gates did"
    assert "No run says" not in html
    assert {file.name for file in figures.iterdir()} == {
        "curves.svg", "curves.png", "staleness.svg", "staleness.png", "timeline-1.svg"
    }  # fmt: skip


def test_a_folder_has_what_a_run_was_on_and_when_each_report_came(tmp_path):
    akkordeon("train", *QUICK, "--out", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    kinds = [line["record"] for line in lines]
    assert kinds[0] == "Environment"
    assert kinds[-2:] == ["Timeline", "Summary"]
    times = [line["at_s"] for line in lines if "at_s" in line]
    assert times == sorted(times)
    assert all(sum(gate["staleness"].values()) == 16 for gate in lines[-1]["gates"])


def test_runs_of_replicas_have_a_report_too(tmp_path):
    akkordeon("downpour", "--epochs", 1, "--samples-per-replica", 64, "--out", tmp_path / "run")
    akkordeon("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert "shard/0" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_several_runs_are_side_by_side(tmp_path):
    folders = [written(tmp_path / name) for name in ("one", "two")]
    done = akkordeon("report", *folders, "--out", tmp_path / "page.html")
    assert "report of 2 runs" in done.stdout


def test_what_is_no_run_is_told(tmp_path):
    refused = akkordeon("report", tmp_path / "none", "--out", tmp_path / "page.html", expecting=1)
    assert "none does not exist" in refused.stderr
    assert not (tmp_path / "page.html").exists()
