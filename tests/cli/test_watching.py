"""What a run tells beside the terminal: sinks and traces of the commands that train."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request

import pytest
import torch
from tests.support.commands import MINE, QUICK, akkordeon, alone, outcome_of, read_until
from tests.support.harness import WAIT_S

from akkordeon.experiments.report.watching import WatchConfig
from akkordeon.watch.sinks.sink import Sink


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_run_is_told_to_tensorboard_with_its_settings(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = outcome_of(akkordeon("train", *QUICK, "--tensorboard", tmp_path / "board", "--json"))
    found = EventAccumulator(str(tmp_path / "board"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [8, 16]
    assert found.Scalars("validate/accuracy")[-1].value == pytest.approx(
        outcome["sentinels"]["validate"]["scores"]["accuracy"]
    )
    settings = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| epochs | 2 |" in settings
    gates = [gate["name"] for gate in outcome["gates"]]
    assert gates == sorted(tag.removesuffix("/staleness") for tag in found.Tags()["histograms"])


def test_replicas_are_told_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard")
    akkordeon("downpour", "--epochs", 1, "--samples-per-replica", 64, "--tensorboard", tmp_path / "board")
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))


def test_a_run_can_be_asked_for_its_numbers_while_it_goes_on():
    pytest.importorskip("prometheus_client")
    process = alone("train", "--epochs", 100_000, "--prometheus", 0)
    (url,) = (word for word in next(process.stderr).split() if word.startswith("http://127.0.0.1:"))
    read_until(process, "train ")
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
        text = answer.read().decode()
    assert 'akkordeon_epoch_loss{sentinel="train"}' in text
    process.kill()
    process.communicate(timeout=WAIT_S)


def test_a_run_can_be_resumed_with_a_sink(tmp_path):
    pytest.importorskip("tensorboard")
    akkordeon("train", *QUICK, "--checkpoint-every", "4u", "--out", tmp_path / "out")
    akkordeon("resume", tmp_path / "out", "--tensorboard", tmp_path / "board")
    assert list((tmp_path / "board").iterdir())


def test_ctrl_c_ends_the_wait_for_a_sink_that_takes_long_to_end(monkeypatch):
    found, before = [], signal.getsignal(signal.SIGINT)

    class Far(Sink):
        def write(self, point):
            pass

        def end(self):
            found.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setattr(WatchConfig, "sinks", lambda *_: iter([Far()]))
    akkordeon("train", *QUICK)
    assert found == [before]


def test_sinks_change_no_bit_of_a_run_that_can_be_repeated(tmp_path):
    pytest.importorskip("tensorboard")
    import safetensors.torch

    plain, watched = tmp_path / "plain", tmp_path / "watched"
    options = ["train", *QUICK, "--workers", 1]
    akkordeon(*options, "--out", plain)
    akkordeon(*options, "--out", watched, "--tensorboard", tmp_path / "b", "--trace", tmp_path / "t.json")
    one, other = (safetensors.torch.load_file(path / "weights.safetensors") for path in (plain, watched))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("option", "module"),
    [("--tensorboard", "tensorboard"), ("--trackio", "trackio"), ("--wandb", "wandb")],
)
def test_a_sink_whose_library_is_missing_is_told_at_once(option, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("akkordeon.watch.sinks.sink.find_spec", lambda name: None)
    refused = akkordeon("train", *QUICK, option, tmp_path / "there", "--out", tmp_path / "out", expecting=1)
    assert f"pip install 'akkordeon[{module}]'" in refused.stderr
    assert not (tmp_path / "out").exists()


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────


def events_in(path):
    return json.loads(path.read_text())["traceEvents"]


def test_a_trace_of_a_run_has_every_batch_at_every_gate(tmp_path):
    outcome = outcome_of(akkordeon("train", *QUICK, "--trace", tmp_path / "t.json", "--json"))
    spans = [event for event in events_in(tmp_path / "t.json") if event["ph"] == "X"]
    trained, gates = outcome["batches"]["trained"], len(outcome["gates"])
    assert sum(event["name"] == "Forward" and "batch" in event["args"] for event in spans) >= trained * gates
    assert sum(event["name"] == "Backward" for event in spans) >= trained * gates
    assert all(event["dur"] > 0 for event in spans)


def test_a_trace_of_a_simulation_is_in_virtual_time(tmp_path):
    scenario = tmp_path / "world.toml"
    scenario.write_text(
        """
        seconds = 100
        [train]
        task = "digits"
        epochs = 1
        take = 64
        [cost]
        forward_s = 0.5
        """
    )
    akkordeon("simulate", scenario, "--trace", tmp_path / "t.json")
    forwards = [e for e in events_in(tmp_path / "t.json") if e["name"] == "Forward"]
    assert forwards
    assert {event["dur"] for event in forwards} == {500_000}


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path):
    path = tmp_path / "absent" / "t.json"
    refused = akkordeon("train", *QUICK, "--trace", path, "--out", tmp_path / "out", expecting=1)
    assert "t.json cannot be written: No such file or directory" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_trace_that_finds_no_room_is_told_and_the_rest_is_kept(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux has /dev/full")
    done = akkordeon("train", *QUICK, "--trace", "/dev/full", "--out", tmp_path / "out", expecting=1)
    assert "/dev/full cannot be written: No space left on device" in done.stderr
    akkordeon("test", tmp_path / "out")


def test_a_run_without_a_trace_or_a_folder_keeps_no_timeline(monkeypatch):
    from akkordeon.engines.timeline import Timeline

    def refuse(*arguments, **options):
        raise AssertionError("somebody keeps a timeline that nobody asked for")

    monkeypatch.setattr(Timeline, "__init__", refuse)
    akkordeon("train", *QUICK)
