"""Checkpoints in ``DIR/checkpoints``, the latest few; a crash at any byte leaves those that were there.

    000007/gate-0.safetensors            the weights of a gate, under the names they have in its module
    000007/gate-0.learner.json           what it learns with, and the version of its weights …
    000007/gate-0.learner.safetensors    … the tensors in that
    000007/sentinels.json                of every sentinel: place in its data, counts, the best so far, …
    000007/run.json                      seed, epochs counted, the random generator
    000007/manifest.json                 size and SHA-256 of each of these files

One is written under another name, and renamed when all of it is on the disk. One that was damaged later is
not read: every file is held against its digest before anybody looks into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import safetensors.torch
from torch import Tensor

from akkordeon.core.errors import DataError, explain
from akkordeon.core.plain_state import Applied, StageState
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.durable import PART, folder_to_disk, whole_folder
from akkordeon.session.recovery.plain_files import (
    JSON,
    TENSORS,
    fits,
    read_plain,
    write_plain,
    write_tensors,
)
from akkordeon.session.recovery.state_check import require_whole

__all__ = ["CHECKPOINTS", "CheckpointFolder"]

CHECKPOINTS = "checkpoints"

FORMAT = 1
MANIFEST = "manifest.json"
LEARNER = ".learner"

WRITING = threading.Lock()
"""Held by who writes a checkpoint: two in one folder would write into one another."""

JSON_BYTES_MAX = 2**28
"""Of a file of JSON that is read: what it says takes many times its size in memory."""


class CheckpointFolder:
    """A folder of checkpoints, in which one process writes at a time, and of its threads one after the other.

    Args:
        path: of the folder; made with the first checkpoint.
        keep: so many are kept, the latest.

    Raises:
        DataError: none is to be kept.
    """

    def __init__(self, path: Path, keep: int = 3) -> None:
        if keep < 1:
            raise DataError(f"at least one checkpoint is kept, got keep={keep}")
        self.path = path
        self._keep = keep

    @classmethod
    def inside(cls, folder: Path, keep: int = 3) -> Self:
        """That of a run which keeps what it comes to in a folder."""
        return cls(folder / CHECKPOINTS, keep)

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint beside those that are there, and remove the oldest.

        Returns:
            The folder it is in.

        Raises:
            DataError: it cannot be written, or holds what files cannot; those that are there stay.
        """
        with self.writing(checkpoint) as path:
            return path

    @contextmanager
    def writing(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """Likewise; all of it is on the disk on entering, and has its name on leaving."""
        with WRITING, self._writing(checkpoint) as path:
            yield path

    @contextmanager
    def _writing(self, checkpoint: Checkpoint) -> Iterator[Path]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for left_over in self.path.glob(f"*{PART}"):  # by a process that was killed
                shutil.rmtree(left_over)
            numbers = self._numbers()
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror or error}") from error
        path = self._folder(max(numbers, default=0) + 1)
        with whole_folder(path) as folder:
            _write(folder, checkpoint)
            folder_to_disk(folder)
            yield path
        for number in sorted(numbers)[: max(0, len(numbers) + 1 - self._keep)]:
            shutil.rmtree(self._folder(number), ignore_errors=True)

    def clear(self) -> None:
        """Remove those that are there.

        Raises:
            OSError: they cannot be.
        """
        if self.path.is_dir():
            for number in self._numbers():
                shutil.rmtree(self._folder(number))
            with suppress(OSError):  # one is being written
                self.path.rmdir()

    @property
    def newest(self) -> Path | None:
        """Where the latest checkpoint is, whole or damaged; None where there is none."""
        try:
            return self._folder(max(self._numbers()))
        except (OSError, ValueError):
            return None

    def latest(self, note: Callable[[str], None] = lambda sentence: None) -> Checkpoint:
        """The latest checkpoint that is whole.

        Args:
            note: takes a sentence for each later one that is not.

        Raises:
            DataError: there is none.
        """
        try:
            numbers = sorted(self._numbers(), reverse=True)
        except OSError as error:
            raise DataError(f"there is no checkpoint in {self.path}: {error.strerror}") from error
        for number in numbers:
            try:
                return load_checkpoint(self._folder(number))
            except DataError as error:
                note(str(error))
        why = f"; none of the {len(numbers)} there is whole" if numbers else ""
        raise DataError(f"there is no checkpoint to go on from in {self.path}{why}")

    def _folder(self, number: int) -> Path:
        return self.path / f"{number:06d}"

    def _numbers(self) -> list[int]:
        names = [entry.name for entry in os.scandir(self.path) if entry.is_dir(follow_symlinks=False)]
        return [int(name) for name in names if re.fullmatch("[0-9]{6,18}", name)]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    for address, stage in checkpoint.stages.items():
        _write_stage(folder, _file_name(address), stage, f"what {address} learns with")
    write_plain(folder, "sentinels", checkpoint.sentinels, "the place of a sentinel in its data")
    run = {
        "number": checkpoint.number,
        "session": checkpoint.session,
        "stages": list(checkpoint.stages),
    }
    write_plain(folder, "run", run, "the state of the session")
    files = {file.name: _described(file) for file in sorted(folder.iterdir())}
    manifest = json.dumps({"format": FORMAT, "files": files}, indent=2)
    (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")


def _write_stage(folder: Path, name: str, stage: StageState, what: str) -> None:
    write_tensors(
        folder / f"{name}{TENSORS}", {name: each for name, each in stage.tensors.items() if fits(each)}
    )
    learner = {
        "version": stage.version,
        "tensors": list(stage.tensors),
        "others": {name: each for name, each in stage.tensors.items() if not fits(each)},
        "learner": stage.learner,
        "applied": {sentinel: [each.next, sorted(each.missing)] for sentinel, each in stage.applied.items()},
    }
    write_plain(folder, name + LEARNER, learner, what)


def _file_name(address: str) -> str:
    """``gate-0`` for ``gate/0``."""
    return address.replace("/", "-")


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        DataError: it is damaged, or none.
    """
    try:
        read = partial(_checked, folder, _manifest_of(folder))
        run = read_plain(read, "run")
        sentinels = read_plain(read, "sentinels")
        stages = {address: _read_stage(read, _file_name(address)) for address in run["stages"]}
        checkpoint = Checkpoint(stages, sentinels, run["session"], run["number"])
        require_whole(checkpoint)
        return checkpoint
    except OSError as error:
        raise DataError(f"the checkpoint {folder} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever comes of files that somebody else has written
        raise DataError(f"the checkpoint {folder} is refused: {explain(error)}") from error


def _read_stage(read: Callable[[str], bytes], name: str) -> StageState:
    learner = read_plain(read, name + LEARNER)
    tensors: dict[str, Tensor] = safetensors.torch.load(read(f"{name}{TENSORS}")) | learner["others"]
    applied = {
        sentinel: Applied(n, frozenset(missing)) for sentinel, (n, missing) in learner["applied"].items()
    }
    return StageState(
        version=learner["version"],
        tensors={name: tensors[name] for name in learner["tensors"]},
        learner=learner["learner"],
        applied=applied,
    )


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"a {type(value).__name__} is no state of anybody")
    return value


def _manifest_of(folder: Path) -> Mapping[str, Any]:
    """What the manifest says of each file.

    Raises:
        OSError: it cannot be read.
        DataError, LookupError, TypeError, ValueError: it is damaged.
    """
    with _opened(folder / MANIFEST) as file:
        size = os.fstat(file.fileno()).st_size
        manifest = json.loads(file.read(_checked_size(MANIFEST, size)))
    if manifest["format"] != FORMAT:
        raise DataError(f"it is of format {manifest['format']!r}, and this version reads {FORMAT}")
    return _dict(manifest["files"])


def _checked(folder: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """What is in a file, if it is what was written.

    Raises:
        OSError: it cannot be read.
        DataError, LookupError, TypeError: it is damaged, or never was there.
    """
    if not re.fullmatch(r"[\w.-]+", name) or name not in manifest:
        raise DataError(f"its {MANIFEST} says nothing of {name!r}")
    with _opened(folder / name) as file:
        size = os.fstat(file.fileno()).st_size
        if size != manifest[name]["bytes"]:
            raise DataError(f"{name} has {size:,} bytes instead of {manifest[name]['bytes']:,}")
        content = file.read(_checked_size(name, size))
    if hashlib.sha256(content).hexdigest() != manifest[name]["sha256"]:
        raise DataError(f"what {name} holds does not fit its digest")
    return content


def _opened(path: Path) -> BinaryIO:
    """A regular file, and no link to one elsewhere.

    Raises:
        OSError: it cannot be opened.
        DataError: it is something else.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(number, "rb")
    if not stat.S_ISREG(os.fstat(number).st_mode):
        file.close()
        raise DataError(f"{path.name} is no regular file")
    return file


def _checked_size(name: str, size: int) -> int:
    if name.endswith(JSON) and size > JSON_BYTES_MAX:
        raise DataError(f"{name} has {size:,} bytes, more than the {JSON_BYTES_MAX:,} that are read")
    return size
