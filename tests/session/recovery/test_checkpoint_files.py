"""Checkpoints in a folder: akkordeon.session.recovery.checkpoint_files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.support.checkpoints import assert_is, numbered, validating, write_for_ever
from tests.support.forks import FORKS
from tests.support.harness import WAIT_S, batches_of, same_bits, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import DataError
from akkordeon.core.plain_state import StageState
from akkordeon.core.reports import EpochDone
from akkordeon.session.recovery import checkpoint_files
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CheckpointFolder, load_checkpoint


def written(path: Path, *numbers: int, keep: int = 3) -> CheckpointFolder:
    folder = CheckpointFolder(path / "checkpoints", keep)
    for number in numbers:
        folder.write(numbered(number))
    return folder


def learning(scheduler: dict[str, Any]) -> dict[str, Any]:
    return {"optimizer": None, "scheduler": scheduler, "rule": {}, "updates": 1, "kinds": {}}


# ── there and back ───────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_comes_back_to_the_bit(tmp_path):
    assert_is(written(tmp_path, 7).latest(), 7)


def test_weights_are_in_a_file_that_anybody_reads(tmp_path):
    path = written(tmp_path).write(numbered(7))
    weights = safetensors.torch.load_file(path / "gate-0.safetensors")
    assert torch.equal(weights["weight"], torch.full((6, 3), 7.0))


ODD = {
    "empty": torch.empty(0, 3),
    "a number": torch.tensor(3),
    "half": torch.randn(3).half(),
    "bfloat16": torch.randn(3).bfloat16(),
    "complex": torch.randn(2, 3, dtype=torch.complex128),
    "conjugate": torch.randn(2, 3, dtype=torch.complex64).conj(),
    "transposed": torch.randn(2, 3).T,
    "part of another": torch.randn(9)[2:4],
    "bool": torch.tensor([True, False]),
    "bytes of 4 bits": torch.zeros(2, dtype=torch.float8_e5m2),
}


@pytest.mark.parametrize("tensor", ODD.values(), ids=ODD)
def test_tensors_of_every_kind_come_back(tensor, tmp_path):
    """As weights, as what a stage learns with, and twice, in the same memory."""
    stage = StageState(1, {"a": tensor, "b": tensor}, learning({"momentum": [tensor, tensor]}))
    folder = written(tmp_path)
    folder.write(replace(numbered(1), stages={"gate/0": stage}))
    back = folder.latest().stages["gate/0"]
    for other in (*back.tensors.values(), *back.learner["scheduler"]["momentum"]):
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
        assert str(other) == str(tensor)


def test_plain_data_of_every_kind_comes_back(tmp_path):
    plain = {
        "nothing": None,
        "numbers": [1, True, 2.5, -0.0, 1e300, 2**80],
        "no numbers": [math.inf, -math.inf],
        "tuples": (1, (2, [3]), ()),
        "keys": {1: "one", 2.5: "float", "1": "text", (1, 2): "tuple", None: "none", False: "false"},
        "looks like ours": {"tensor": 3},
        "likewise": {"dict": {"tuple": [1, {"float": "nan"}]}},
        "text": "Ünï \ud800 \x00 \n",
        "bytes": b"\x00\xff",
        "": {},
    }
    folder = written(tmp_path)
    folder.write(replace(numbered(1), sentinels={"a": {**validating(1), "plain": plain}}))
    assert repr(folder.latest().sentinels["a"]["plain"]) == repr(plain)


@pytest.mark.parametrize(
    ("thing", "what"), [({1, 2}, "a set"), (torch.eye(2).to_sparse(), "a tensor that is sparse_coo")]
)
def test_what_files_cannot_hold_is_refused_and_harms_nothing(thing, what, tmp_path):
    folder = written(tmp_path, 1)
    stage = StageState(1, {}, {"state": thing})
    with pytest.raises(DataError, match=f"what gate/0 learns with cannot be kept in a file: it holds {what}"):
        folder.write(replace(numbered(2), stages={"gate/0": stage}))
    assert os.listdir(folder.path) == ["000001"]
    assert_is(folder.latest(), 1)


# ── the latest few ───────────────────────────────────────────────────────────────────────────────────


def test_the_latest_few_are_kept(tmp_path):
    folder = written(tmp_path, *range(1, 6), keep=2)
    assert sorted(os.listdir(folder.path)) == ["000004", "000005"]
    assert_is(folder.latest(), 5)
    with pytest.raises(DataError, match="at least one checkpoint is kept, got keep=0"):
        CheckpointFolder(tmp_path, keep=0)


@pytest.mark.parametrize("keep", range(1, 9))
def test_as_many_are_kept_as_there_may_be(keep, tmp_path):
    folder = CheckpointFolder(tmp_path, keep)
    for number in range(1, 11):
        folder.write(numbered(number))
        assert len(os.listdir(tmp_path)) == min(number, keep)


def test_threads_that_write_at_once_do_not_write_into_one_another(tmp_path):
    folder, numbers = CheckpointFolder(tmp_path, keep=20), range(1, 13)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda number: folder.write(numbered(number)), numbers))
    for number, path in zip(numbers, paths, strict=True):
        assert_is(load_checkpoint(path), number)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    folder = written(tmp_path, 1)
    shutil.copytree(folder.path / "000001", folder.path / "000002.part")
    assert_is(folder.latest(), 1)
    folder.write(numbered(2))
    assert sorted(os.listdir(folder.path)) == ["000001", "000002"]


def test_without_any_that_is_whole_it_says_so(tmp_path):
    folder = CheckpointFolder(tmp_path / "none")
    with pytest.raises(DataError, match=r"there is no checkpoint in .*none: No such file or directory"):
        folder.latest()
    folder.path.mkdir()
    with pytest.raises(DataError, match=r"there is no checkpoint to go on from in .*none$"):
        folder.latest()
    (folder.path / "000001").mkdir()
    notes: list[str] = []
    with pytest.raises(DataError, match=r"in .*none; none of the 1 there is whole"):
        folder.latest(notes.append)
    assert len(notes) == 1
    assert "000001 cannot be read: No such file or directory" in notes[0]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/checkpoints cannot be written: Not a directory"):
        CheckpointFolder(tmp_path / "file" / "checkpoints").write(numbered(1))


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_moment_leaves_the_last_checkpoint_good(kills, tmp_path):
    how, folder, half_written = random.Random(1), CheckpointFolder(tmp_path), 0
    folder.write(numbered(1))
    done = FORKS.Value("q", 1)
    for _ in range(kills):
        begun = FORKS.Value("q", 0)
        writer = FORKS.Process(target=write_for_ever, args=(str(tmp_path), begun, done))
        writer.start()
        while not begun.value:
            writer.join(0.001)
        writer.join(how.uniform(0, 0.3))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        half_written += any(tmp_path.glob("*.part"))
        latest = folder.latest(pytest.fail)
        assert latest.number in (done.value, done.value + 1)
        assert_is(latest, latest.number)
        done.value = latest.number
    assert half_written
    print(f"{kills} kills, {half_written} of them with a checkpoint half written; {done.value} were written")


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────


def damage(folder: Path, how: random.Random) -> Callable[[], None]:
    """Flip, cut or take away bytes of a file; how to mend it again."""
    path = how.choice(sorted(folder.iterdir()))
    content = path.read_bytes()
    changed, at = bytearray(content), how.randrange(len(content))
    kind = how.choice(["flip", "flips", "cut", "missing", "zeros", "more", "gone", "swapped"])
    if kind == "flip":
        changed[at] ^= 1 << how.randrange(8)
    elif kind == "flips":
        for _ in range(20):
            changed[how.randrange(len(changed))] = how.randrange(256)
    elif kind == "cut":
        del changed[at:]
    elif kind == "missing":
        del changed[at : at + how.randrange(1, 9)]
    elif kind == "zeros":
        changed[at:] = bytes(len(changed) - at)
    elif kind == "more":
        changed[at:at] = how.randbytes(how.randrange(1, 64))
    elif kind == "swapped":
        changed[:] = how.choice(sorted(folder.iterdir())).read_bytes()
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(changed)
    return lambda: path.write_bytes(content) and None


@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(times, tmp_path):
    how, folder, refused = random.Random(2), written(tmp_path, 1, 2, 3), 0
    for _ in range(times):
        mends = [damage(folder.path / "000003", how)]
        if how.random() < 0.5:
            mends.append(damage(folder.path / "000002", how))
        notes: list[str] = []
        latest = folder.latest(notes.append)
        assert latest.number == 3 - len(notes)
        assert_is(latest, latest.number)
        assert all("000" in note and "\n" not in note for note in notes)
        refused += len(notes)
        for mend in mends:
            mend()
        assert_is(folder.latest(pytest.fail), 3)
    assert refused > times


# ── forgery ──────────────────────────────────────────────────────────────────────────────────────────


def forge(path: Path, name: str, content: bytes) -> None:
    """Put other content into a file, with a digest that fits."""
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


FORGED = {
    "no stages": ("run.json", b'{"number": 1, "session": {}, "stages": null}'),
    "a path": ("run.json", b'{"number": 1, "session": {}, "stages": ["../../etc"]}'),
    "another number": ("run.json", b'{"number": {"a": 1}, "session": {}, "stages": []}'),
    "nothing": ("run.json", b"{}"),
    "no JSON": ("run.json", b"\x80\x04K\x01."),
    "deep": ("run.json", b"[" * 100_000),
    "no dict": ("sentinels.json", b"[1, 2]"),
    "a tensor that is not there": ("sentinels.json", b'{"a": {"tensor": "7"}}'),
    "an unhashable key": ("sentinels.json", b'{"dict": [[[1], 2]]}'),
    "a callable for a dtype": (
        "sentinels.json",
        b'{"a": {"tensor": {"dtype": "load", "shape": [1], "bytes": "0"}}}',
    ),
    "no safetensors": ("gate-0.safetensors", b"\x80\x04K\x01."),
    "a header of exabytes": ("gate-0.safetensors", b"\xff" * 8 + b"{}"),
    "other names": ("gate-0.safetensors", safetensors.torch.save({"other": torch.zeros(1)})),
}


@pytest.mark.parametrize(("name", "content"), FORGED.values(), ids=FORGED)
def test_other_content_with_a_digest_that_fits_is_refused_in_a_sentence(name, content, tmp_path):
    folder = written(tmp_path, 1, 2)
    forge(folder.path / "000002", name, content)
    notes: list[str] = []
    assert_is(folder.latest(notes.append), 1)
    assert len(notes) == 1
    assert "000002 is refused: " in notes[0]
    assert "\n" not in notes[0]


def paths_in(tree: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a tree of JSON."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield (*here, key)
        yield from paths_in(tree[key], (*here, key))


@pytest.mark.parametrize("name", ["run.json", "sentinels.json", "gate-0.learner.json"])
@pytest.mark.parametrize("other", ["x", [], {}, None, -1], ids=str)
def test_nothing_in_a_state_may_be_of_another_type(name, other, tmp_path):
    """Refused in a sentence, or where anything may stand, as in what an optimizer keeps, it is that."""
    folder = written(tmp_path, 1)
    original = (folder.path / "000001" / name).read_bytes()
    refused = 0
    for *way, last in paths_in(json.loads(original)):
        tree = json.loads(original)
        place = tree
        for key in way:
            place = place[key]
        place[last] = other
        forge(folder.path / "000001", name, json.dumps(tree).encode())
        notes: list[str] = []
        with suppress(DataError):
            folder.latest(notes.append)
        assert not any("\n" in note for note in notes)
        refused += len(notes)
    assert refused


def test_a_manifest_leads_nowhere_else(tmp_path):
    folder = written(tmp_path, 1)
    path = folder.path / "000001"
    secret = tmp_path / "secret"
    (path / "run.json").rename(secret)
    (path / "run.json").symlink_to(secret)
    with pytest.raises(DataError, match="none of the 1 there is whole"):
        folder.latest()
    (path / "run.json").unlink()
    os.mkfifo(path / "run.json")
    notes: list[str] = []
    with pytest.raises(DataError, match="none of the 1 there is whole"):
        folder.latest(notes.append)
    assert "run.json is no regular file" in notes[0]


def test_a_link_is_no_checkpoint(tmp_path):
    folder = written(tmp_path, 1)
    (folder.path / "000002").symlink_to(folder.path / "000001")
    (folder.path / "000003").write_text("")
    assert_is(folder.latest(pytest.fail), 1)


def test_json_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "JSON_BYTES_MAX", 100)
    notes: list[str] = []
    with pytest.raises(DataError, match="none of the 1 there is whole"):
        written(tmp_path, 1).latest(notes.append)
    assert "bytes, more than the 100 that are read" in notes[0]


def test_a_format_that_is_not_known_is_refused(tmp_path, monkeypatch):
    folder = written(tmp_path, 1)
    monkeypatch.setattr(checkpoint_files, "FORMAT", 2)
    notes: list[str] = []
    with pytest.raises(DataError, match="none of the 1 there is whole"):
        folder.latest(notes.append)
    assert notes[0].endswith("is refused: it is of format 1, and this version reads 2")


def test_a_checkpoint_of_no_stages_is_a_checkpoint(tmp_path):
    folder = written(tmp_path)
    checkpoint = Checkpoint({}, {}, {"seed": 3, "epochs_done": 0, "random": None})
    folder.write(checkpoint)
    assert folder.latest() == checkpoint


# ── from a session and back ──────────────────────────────────────────────────────────────────────────


def test_a_session_keeps_itself_in_a_folder_and_goes_on_from_there(tmp_path):
    network = small_network()
    trainer = ak.Sentinel.train(batches_of(40), cross_entropy, epochs=3, name="a")
    with ak.run(network, "simulator", seed=5) as session:
        session.attach(trainer).wait(WAIT_S)
        whole = session.module()
    with ak.run(network, "simulator", seed=5) as session:
        session.subscribe(lambda record: isinstance(record, EpochDone) and session.detach("a"), inline=True)
        stopped = session.attach(trainer).wait(WAIT_S)
        assert 40 <= stopped.batches.trained < 120
        session.checkpoint(tmp_path)
    with ak.resume(tmp_path, network, "simulator") as session:
        assert session.seed == 5
        assert session.attach(trainer).wait(WAIT_S).batches.as_tuple() == (120, 120, 0, 0)
        assert same_bits(session.module(), whole)


def test_a_damaged_checkpoint_is_logged_and_the_one_before_taken(tmp_path, caplog):
    with ak.run(small_network(), "simulator") as session:
        session.checkpoint(tmp_path)
        session.checkpoint(str(tmp_path))
    (tmp_path / "checkpoints" / "000002" / "run.json").unlink()
    with ak.resume(tmp_path, small_network(), "simulator"):
        pass
    assert "000002 cannot be read: No such file or directory" in caplog.text
