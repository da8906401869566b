"""What a run leaves in a folder: akkordeon.experiments.run_folder and the journal."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.support.harness import batches_of, same_bits, sgd, small_network
from torch import nn
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import DataError
from akkordeon.core.reports import BatchRefused, EpochDone, RoundDone, TrainingProgress, Undelivered
from akkordeon.experiments import run_folder
from akkordeon.experiments.array_file import load_array, save_array
from akkordeon.experiments.journal import REFUSALS_MAX, REPORTS_MAX, Journal
from akkordeon.experiments.run_folder import (
    BEST,
    REPORT,
    TASK,
    WEIGHTS,
    RunFolder,
    as_json,
    description_text,
    load_description,
    load_weights,
    save_weights,
)


def module_of(network: ak.Network) -> nn.Module:
    with ak.run(network, "simulator") as session:
        return session.module()


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────


def test_weights_and_buffers_come_back_to_the_bit(tmp_path):
    def make():
        norm = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        return ak.Network([ak.Gate(norm), ak.Gate(nn.ReLU()), ak.Gate(nn.Linear(5, 4))])

    network = make()
    network.gates[0].module[1].running_mean.fill_(3.0)
    save_weights(tmp_path / "w.safetensors", module_of(network))
    loaded = load_weights(tmp_path / "w.safetensors", make())
    assert same_bits(loaded.module(), network.module())
    assert isinstance(loaded, ak.Network)


def test_a_parameter_with_two_names_in_one_gate_is_kept_once(tmp_path):
    def make():
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module[1].weight = module[0].weight
        return ak.Network([ak.Gate(module)])

    network = make()
    save_weights(tmp_path / "w.safetensors", module_of(network))
    assert same_bits(load_weights(tmp_path / "w.safetensors", make()).module(), network.module())


def other(last: int) -> ak.Network:
    network = small_network()
    return replace(network, gates=[*network.gates[:2], ak.Gate(nn.Linear(7, last))])


def shorter() -> ak.Network:
    network = small_network()
    return replace(network, gates=network.gates[:2])


def test_weights_of_another_network_are_refused_by_the_name_that_differs(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, module_of(small_network()))
    with pytest.raises(DataError, match=r"another network: 2.weight is \(4, 7\), the task's is \(5, 7\)"):
        load_weights(path, other(5))
    with pytest.raises(DataError, match=r"safetensors has 2.bias, the task's network has not"):
        load_weights(path, shorter())
    save_weights(path, module_of(shorter()))
    with pytest.raises(DataError, match=r"the task's network has 2.bias, the .* has not"):
        load_weights(path, small_network())


def test_missing_and_damaged_weights_are_told(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(DataError, match=r"w.safetensors is not there; `akkordeon train --out"):
        load_weights(path, small_network())
    save_weights(path, module_of(small_network()))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"w.safetensors is damaged: what it holds does not fit its digest"):
        load_weights(path, small_network())
    for content in (b"", b"12345678", b"\x02" + bytes(7) + b"[]", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"w.safetensors is damaged or no safetensors file"):
            load_weights(path, small_network())
    safetensors.torch.save_file(module_of(small_network()).state_dict(), path)
    with pytest.raises(DataError, match=r"w.safetensors has no digest of its weights"):
        load_weights(path, small_network())


def damaged(content: bytes, how: random.Random) -> bytes:
    """The same bytes with something wrong somewhere."""
    changed, at = bytearray(content), how.randrange(len(content))
    kind = how.choice(["bit", "byte", "cut", "more", "zeros", "insert", "delete", "head"])
    if kind == "bit":
        changed[at] ^= 1 << how.randrange(8)
    elif kind == "byte":
        changed[at] = how.randrange(256)
    elif kind == "head":
        changed[how.randrange(min(len(content), 400))] = how.randrange(256)
    elif kind == "cut":
        del changed[at:]
    elif kind == "more":
        changed += how.randbytes(how.randrange(1, 64))
    elif kind == "zeros":
        changed[at : at + 64] = bytes(len(changed[at : at + 64]))
    elif kind == "insert":
        changed[at:at] = how.randbytes(1)
    else:
        del changed[at : at + how.randrange(1, 9)]
    return bytes(changed)


def test_damaged_weights_are_refused_or_the_same_and_never_others(tmp_path):
    how, path, network = random.Random(0), tmp_path / "w.safetensors", small_network()
    save_weights(path, network.module())
    content, refused = path.read_bytes(), 0
    for _ in range(300):
        path.write_bytes(damaged(content, how))
        try:
            loaded = load_weights(path, small_network())
        except DataError:
            refused += 1
        else:
            assert same_bits(loaded.module(), network.module())
    assert refused > 250


def test_a_damaged_description_is_refused_or_the_same_and_never_another(tmp_path):
    how, description = random.Random(0), {"task": "digits", "seed": 3, "data_dir": None, "lr": 0.25}
    (tmp_path / TASK).write_text(description_text(description))
    content = (tmp_path / TASK).read_bytes()
    for _ in range(300):
        (tmp_path / TASK).write_bytes(damaged(content, how))
        with suppress(DataError):
            assert load_description(tmp_path) == description


class Everything(nn.Module):
    """Buffers of every kind and extra state."""

    def __init__(self, plain: bool = True):
        super().__init__()
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("not_persistent", torch.zeros(3), persistent=False)
        self.register_buffer("to_come", None)
        self.register_buffer("to_go", torch.zeros(1))
        self.register_buffer("growing", torch.zeros(1))
        self.register_buffer("wide", torch.zeros(2, dtype=torch.complex128))
        self.plain, self.steps = plain, 0

    def get_extra_state(self):
        return {"steps": self.steps if self.plain else Everything}

    def set_extra_state(self, state):
        self.steps = state["steps"]

    def forward(self, x):
        return x


def test_all_buffers_and_extra_state_are_kept(tmp_path):
    def make():
        return ak.Network([ak.Gate(nn.Sequential(nn.Linear(2, 2), Everything()))])

    network = make()
    everything = network.gates[0].module[1]
    everything.kept.fill_(1)
    everything.not_persistent.fill_(2)
    everything.to_come, everything.to_go = torch.full((4,), 3.0), None
    everything.growing = torch.full((5,), 4.0)
    everything.wide.fill_(1 + 2j)
    everything.steps = 7
    save_weights(tmp_path / "w.safetensors", network.module())
    loaded = load_weights(tmp_path / "w.safetensors", make()).gates[0].module[1]
    for name in ("kept", "not_persistent", "to_come", "growing", "wide"):
        assert torch.equal(getattr(loaded, name), getattr(everything, name)), name
    assert loaded.to_go is None
    assert loaded.steps == 7


class Averaging(Everything):
    """Its outputs depend on buffers and extra state that change in training."""

    def forward(self, x):
        if self.training:
            self.not_persistent = 0.9 * self.not_persistent + x.detach().mean(0)
            self.to_come = 2 * self.not_persistent
            self.steps += 1
        return x + self.not_persistent + self.steps + (0 if self.to_come is None else self.to_come)


def test_what_is_kept_predicts_what_the_session_did(tmp_path):
    def make():
        parts = [nn.Sequential(nn.Linear(6, 3), Averaging()), nn.Linear(3, 4)]
        return ak.Network([ak.Gate(part, sgd) for part in parts])

    torch.manual_seed(0)
    network, x = make(), torch.randn(5, 6)
    with ak.run(network, "simulator") as session:
        session.attach(ak.Sentinel.train(batches_of(10), cross_entropy)).wait()
        predicted = session.predict(x)
        save_weights(tmp_path / "w.safetensors", session.module())
    with ak.run(load_weights(tmp_path / "w.safetensors", make()), "simulator") as session:
        assert torch.equal(session.predict(x), predicted)


def test_extra_state_that_is_no_plain_data_is_left_out_and_missed(tmp_path):
    with pytest.raises(ak.errors.RecipeError, match=r"the extra state '_extra_state' cannot be carried"):
        ak.Network([ak.Gate(Everything(plain=False))])
    network = ak.Network([ak.Gate(Everything())])
    save_weights(tmp_path / "w.safetensors", nn.Sequential(Everything(plain=False)))
    with pytest.raises(DataError, match=r"not all of its network: 0._extra_state is no plain data"):
        load_weights(tmp_path / "w.safetensors", network)


@pytest.mark.parametrize("make", [small_network, lambda: cut_network()[0]])
def test_what_is_kept_has_the_names_of_the_sessions_module(make, tmp_path):
    network = make()
    module = module_of(network)
    save_weights(tmp_path / "w.safetensors", module)
    module.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"), strict=True)
    assert same_bits(load_weights(tmp_path / "w.safetensors", make()).module(), module)


def cut_network() -> tuple[ak.Network, nn.Module]:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    model[2].weight.data.mul_(2)
    return ak.Network.from_module(
        model, gates=2, optimizer=lambda params: torch.optim.SGD(params, 0.1)
    ), model


def test_what_is_kept_of_a_cut_model_is_loaded_by_the_model(tmp_path):
    network, model = cut_network()
    save_weights(tmp_path / "w.safetensors", module_of(network))
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"), strict=True)
    assert same_bits(other, model)


# ── files and folders ────────────────────────────────────────────────────────────────────────────────


def test_one_run_at_a_time_keeps_in_a_folder(tmp_path):
    folder = RunFolder(tmp_path, {"task": "digits"})
    with pytest.raises(DataError, match="another run keeps its weights in"):
        RunFolder(tmp_path, {"task": "digits"})
    folder.close()
    RunFolder(tmp_path, {"task": "digits"}).close()


def test_what_an_earlier_run_kept_stays_until_there_are_weights_of_this_one(tmp_path):
    network = small_network()
    earlier = RunFolder(tmp_path, {"task": "earlier"})
    for name in (WEIGHTS, BEST):
        earlier.save(name, network.module())
    earlier.close()
    folder = RunFolder(tmp_path, {"task": "later"})
    assert load_description(tmp_path) == {"task": "earlier"}
    folder.save(WEIGHTS, network.module())
    assert load_description(tmp_path) == {"task": "later"}
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, TASK}
    folder.close()


def kept_by_an_earlier_run(path: Path) -> None:
    earlier = RunFolder(path, {"task": "earlier"})
    for name in (WEIGHTS, BEST):
        earlier.save(name, nn.Linear(1, 1))
    earlier.close()
    (path / REPORT).write_text("earlier")


def test_a_run_that_cannot_write_its_task_leaves_what_an_earlier_one_kept(tmp_path, monkeypatch):
    """The earlier weights were deleted first, and then the disk was full."""
    kept_by_an_earlier_run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    folder = RunFolder(tmp_path, {"task": "later"})
    to_disk = run_folder.to_disk

    def full(path: Path) -> None:
        if path.name.startswith(TASK):
            raise OSError(errno.ENOSPC, "No space left on device")
        to_disk(path)

    monkeypatch.setattr(run_folder, "to_disk", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        folder.save(WEIGHTS, nn.Linear(1, 1))
    folder.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("first", [WEIGHTS, BEST])
def test_a_run_ended_while_it_takes_over_a_folder_loses_and_mixes_nothing(first, tmp_path, monkeypatch):
    steps = 0
    while True:
        path = tmp_path / f"{steps}"
        kept_by_an_earlier_run(path)
        earlier = (path / first).read_bytes()
        folder, left = RunFolder(path, {"task": "later"}), steps

        def ends(step):
            def instead(*given, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return step(*given, **options)

            return instead

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", ends(os.replace))
            patched.setattr(Path, "unlink", ends(Path.unlink))
            try:
                folder.save(first, nn.Linear(1, 1))
            except KeyboardInterrupt:
                ended = True
            else:
                ended = False
        folder.close()
        weights = (path / first).read_bytes()
        if (path / TASK).exists():
            assert load_description(path)["task"] == ("earlier" if weights == earlier else "later")
        if not ended:
            break
        steps += 1
    assert steps >= 6
    assert {file.name for file in path.iterdir()} == {first, TASK}


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be deleted there")
def test_a_folder_deleted_meanwhile_is_made_again_and_is_ours_again(tmp_path):
    """All later weights and the report were lost, for want of a folder."""
    path = tmp_path / "out"
    folder = RunFolder(path, {"task": "digits"})
    journal = Journal(path)
    folder.save(WEIGHTS, nn.Linear(1, 1))
    journal.tell(BatchRefused("train", 3, "gate/0", "unfit", "it is wrong"))
    shutil.rmtree(path)
    folder.save(WEIGHTS, nn.Linear(1, 1))
    assert load_description(path) == {"task": "digits"}
    with pytest.raises(DataError, match="another run keeps its weights in"):
        RunFolder(path, {})
    journal.close({})
    lines = (path / REPORT).read_text().splitlines()
    assert [json.loads(line)["record"] for line in lines] == ["BatchRefused", "Summary"]
    folder.close()


def test_what_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the folder .*file/below cannot be made: Not a directory"):
        RunFolder(tmp_path / "file" / "below", {})
    with pytest.raises(DataError, match=r"absent/w.safetensors cannot be written: No such file or directory"):
        save_weights(tmp_path / "absent" / "w.safetensors", nn.Linear(2, 2))
    with pytest.raises(DataError, match=r"absent/report.jsonl cannot be written: No such file"):
        Journal(tmp_path / "absent")


def test_a_description_comes_back(tmp_path):
    (tmp_path / TASK).write_text(description_text({"task": "digits", "seed": 3}))
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
    journal.tell(TrainingProgress("tdp", 2, 0.25, {}, 10, 100, 10.0, 1.5, 4))
    journal.tell(BatchRefused("tdp", 7, "gate/1", "not_finite", "its output is not finite"))
    assert len((tmp_path / f"{REPORT}.part").read_text().splitlines()) == 3, "each line is there at once"
    journal.tell(RoundDone("vdp", "validate", 1, float("nan"), {}, 10, 0.5, 45))
    journal.close({"seconds": 2.5})
    lines = [json.loads(line) for line in (tmp_path / REPORT).read_text().splitlines()]
    assert [line["record"] for line in lines] == [
        "EpochDone",
        "TrainingProgress",
        "BatchRefused",
        "RoundDone",
        "Summary",
    ]
    assert lines[0]["scores"] == {"accuracy": 0.25}
    assert lines[0]["samples_per_s"] == 50.0
    assert lines[2]["reason"] == "its output is not finite"
    assert lines[3]["loss"] is None
    assert lines[4]["seconds"] == 2.5
    assert not (tmp_path / f"{REPORT}.part").exists()


def test_refused_batches_beyond_a_hundred_are_counted_with_the_next_report(tmp_path):
    journal = Journal(tmp_path)
    for number in range(REFUSALS_MAX + 30):
        journal.tell(BatchRefused("tdp", number, "gate/1", "not_finite", "its output is not finite"))
    journal.tell(EpochDone("tdp", 1, 0.5, {}, 100, 2.0, 1.5, 4))
    journal.tell(BatchRefused("tdp", 200, "gate/0", "form", "its input is too wide"))
    journal.close({})
    lines = [json.loads(line) for line in (tmp_path / REPORT).read_text().splitlines()]
    assert [line["record"] for line in lines[REFUSALS_MAX:]] == [
        "BatchesRefused",
        "EpochDone",
        "BatchesRefused",
        "Summary",
    ]
    assert lines[REFUSALS_MAX]["by_gate_and_fault"] == {"gate/1 not_finite": 30}
    assert lines[-2]["by_gate_and_fault"] == {"gate/0 form": 1}


def test_a_journal_of_very_many_epochs_has_one_a_second_of_each_sentinel(tmp_path):
    clock = iter(n / 100 for n in range(10**9))
    journal = Journal(tmp_path, now_s=lambda: next(clock))
    for number in range(REPORTS_MAX + 1000):
        journal.tell(EpochDone("tdp", number, 0.5, {}, 100, 2.0, 1.5, 4))
    journal.close({})
    lines = [json.loads(line) for line in (tmp_path / REPORT).read_text().splitlines()]
    assert len(lines) == REPORTS_MAX + 10 + 1
    assert lines[-2]["left_out"] == 99


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


@pytest.mark.parametrize("rows", [10**13, 10**18])
def test_an_array_that_promises_more_than_its_file_has_is_told(rows, tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 64)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"0" * 64)
    with pytest.raises(DataError, match=r"x.npy cannot be read as an array of numbers: its header promises"):
        load_array(tmp_path / "x.npy", torch.zeros(1, 64))


def test_an_archive_of_arrays_is_no_array(tmp_path):
    np.savez(tmp_path / "x.npz", np.ones(3))
    with pytest.raises(DataError, match=r"x.npz cannot be read as an array"):
        load_array(tmp_path / "x.npz", torch.zeros(1, 4))


def test_outputs_are_written_as_an_array(tmp_path):
    save_array(tmp_path / "y.npy", torch.eye(3))
    assert (np.load(tmp_path / "y.npy") == np.eye(3)).all()
