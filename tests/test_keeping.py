"""What a run leaves in a folder: akkordeon.keeping and the journal."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import same_bits, small_network
from torch import nn

import akkordeon as ak
from akkordeon.errors import DataError
from akkordeon.keeping import (
    REPORT,
    TASK,
    as_json,
    load_array,
    load_description,
    load_weights,
    make_folder,
    save_array,
    save_description,
    save_weights,
    whole_file,
)
from akkordeon.metrics import BatchRefused, EpochDone, RoundDone, Undelivered
from akkordeon.watch.journal import Journal


def states_of(network: ak.Network):
    with ak.run(network, "simulator") as session:
        return session.states()


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────


def test_weights_and_buffers_come_back_to_the_bit(tmp_path):
    def make():
        norm = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        return ak.Network([ak.Gate(norm), ak.Gate(nn.ReLU()), ak.Gate(nn.Linear(5, 4))])

    network = make()
    network.gates[0].module[1].running_mean.fill_(3.0)
    save_weights(tmp_path / "w.safetensors", states_of(network))
    loaded = load_weights(tmp_path / "w.safetensors", make())
    assert same_bits(loaded.module(), network.module())
    assert isinstance(loaded, ak.Network)


def test_a_parameter_with_two_names_in_one_gate_is_kept_once(tmp_path):
    def make():
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module[1].weight = module[0].weight
        return ak.Network([ak.Gate(module)])

    network = make()
    save_weights(tmp_path / "w.safetensors", states_of(network))
    assert same_bits(load_weights(tmp_path / "w.safetensors", make()).module(), network.module())


def other(last: int) -> ak.Network:
    network = small_network()
    return replace(network, gates=[*network.gates[:2], ak.Gate(nn.Linear(7, last))])


def shorter() -> ak.Network:
    network = small_network()
    return replace(network, gates=network.gates[:2])


def test_weights_of_another_network_are_refused_by_the_name_that_differs(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, states_of(small_network()))
    with pytest.raises(
        DataError, match=r"another network: gate/2.weight is \(4, 7\), the task's is \(5, 7\)"
    ):
        load_weights(path, other(5))
    with pytest.raises(DataError, match=r"safetensors has gate/2.bias, the task's network has not"):
        load_weights(path, shorter())
    save_weights(path, states_of(shorter()))
    with pytest.raises(DataError, match=r"the task's network has gate/2.bias, the .* has not"):
        load_weights(path, small_network())


def test_missing_and_damaged_weights_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(DataError, match=r"w.safetensors is not there; `akkordeon train --out"):
        load_weights(path, small_network())
    save_weights(path, states_of(small_network()))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"w.safetensors is damaged or no safetensors file"):
        load_weights(path, small_network())


# ── files and folders ────────────────────────────────────────────────────────────────────────────────


def test_a_file_appears_when_it_is_whole_and_never_before(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the folder .*file/below cannot be made: Not a directory"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(DataError, match=r"absent/w.safetensors cannot be written: No such file or directory"):
        save_weights(tmp_path / "absent" / "w.safetensors", {})
    with pytest.raises(DataError, match=r"absent/report.jsonl cannot be written: No such file"):
        Journal(tmp_path / "absent")


def test_a_description_comes_back(tmp_path):
    save_description(tmp_path, {"task": "digits", "seed": 3})
    assert load_description(tmp_path) == {"task": "digits", "seed": 3}


def test_a_missing_or_damaged_description_is_told(tmp_path):
    with pytest.raises(DataError, match=r"absent does not exist; `akkordeon train --out"):
        load_description(tmp_path / "absent")
    with pytest.raises(DataError, match=r"has no task.json; `akkordeon train --out"):
        load_description(tmp_path)
    for content in ("{", "[]", "{}", '{"task": 3}', "\xff"):
        (tmp_path / TASK).write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match=r"task.json is damaged"):
            load_description(tmp_path)


def test_what_json_has_no_number_for_becomes_null():
    thing = {"a": float("nan"), "b": [1, float("inf"), {"c": -float("inf")}], "d": (0.5, "τ", None)}
    assert json.loads(as_json(thing)) == {"a": None, "b": [1, None, {"c": None}], "d": [0.5, "τ", None]}


# ── the journal ──────────────────────────────────────────────────────────────────────────────────────


def test_a_journal_has_a_line_for_each_epoch_round_and_refused_batch_and_the_summary_last(tmp_path):
    journal = Journal(tmp_path)
    journal.tell(EpochDone("tdp", 1, 0.5, {"accuracy": 0.25}, 100, 2.0, 1.5, 4))
    journal.tell(Undelivered("nobody", None))
    journal.tell(BatchRefused("tdp", 7, "gate/1", "not_finite", "its output is not finite"))
    assert len((tmp_path / f"{REPORT}.part").read_text().splitlines()) == 2, "each line is there at once"
    journal.tell(RoundDone("vdp", "validate", 1, float("nan"), {}, 10, 0.5, 45))
    journal.close({"seconds": 2.5})
    lines = [json.loads(line) for line in (tmp_path / REPORT).read_text().splitlines()]
    assert [line["record"] for line in lines] == ["EpochDone", "BatchRefused", "RoundDone", "Summary"]
    assert lines[0]["scores"] == {"accuracy": 0.25}
    assert lines[0]["samples_per_s"] == 50.0
    assert lines[1]["reason"] == "its output is not finite"
    assert lines[2]["loss"] is None
    assert lines[3]["seconds"] == 2.5
    assert not (tmp_path / f"{REPORT}.part").exists()


# ── arrays ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_array_gets_the_dtype_that_the_network_is_used_to(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 4)))
    assert load_array(tmp_path / "x.npy", like=torch.zeros(1, 4)).dtype == torch.float32
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.int32))
    assert load_array(tmp_path / "x.npy", like=torch.zeros(1, 4, dtype=torch.long)).dtype == torch.long


def test_an_array_that_cannot_be_inputs_is_told(tmp_path):
    path, like = tmp_path / "x.npy", torch.zeros(1, 4)
    with pytest.raises(DataError, match=r"x.npy cannot be read as an array of numbers: No such file"):
        load_array(path, like)
    path.write_text("not an array")
    with pytest.raises(DataError, match=r"x.npy cannot be read as an array of numbers"):
        load_array(path, like)
    np.save(path, np.array(["a"]))
    with pytest.raises(DataError, match=r"x.npy cannot be read as an array of numbers"):
        load_array(path, like)
    np.save(path, np.ones((0, 4)))
    with pytest.raises(DataError, match=r"x.npy holds no rows: its shape is \(0, 4\)"):
        load_array(path, like)
    np.save(path, np.ones((2, 4), np.uint8))
    with pytest.raises(DataError, match=r"x.npy holds uint8, but the task's inputs are float32 \(N, 4\)"):
        load_array(path, like)
    with pytest.raises(DataError, match=r"inputs are several tensors"):
        load_array(path, {"a": like})


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "x.npz", np.ones(3))
    with pytest.raises(DataError, match=r"x.npz cannot be read as an array"):
        load_array(tmp_path / "x.npz", torch.zeros(1, 4))


def test_outputs_are_written_as_an_array(tmp_path):
    save_array(tmp_path / "y.npy", torch.eye(3))
    assert (np.load(tmp_path / "y.npy") == np.eye(3)).all()
