"""What a run leaves in a folder, and how to take it up again: weights, settings, the report.

    DIR/weights.safetensors   the last weights, under the names they have in ``session.module()``
    DIR/best.safetensors      the best ones, where they were kept
    DIR/task.json             the settings, with which the task is made again
    DIR/report.jsonl          what was reported, a JSON object a line, the summary last
    DIR/checkpoints/          where they are taken, all that the run can be taken up from

A file is written under another name, and renamed when it is whole and on the disk: what is there under its
name is right. Weights and task carry a digest (SHA-256) of themselves: what was damaged later is not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from akkordeon.core.errors import DataError
from akkordeon.experiments.safetensors_file import from_safetensors, to_safetensors
from akkordeon.pipeline.network import Network
from akkordeon.session.http.json_bodies import finite
from akkordeon.session.recovery.checkpoint import Checkpoint
from akkordeon.session.recovery.checkpoint_files import CHECKPOINTS, CheckpointFolder
from akkordeon.session.recovery.durable import to_disk, whole_file

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "REPORT",
    "TASK",
    "WEIGHTS",
    "RunFolder",
    "as_json",
    "description_text",
    "load_description",
    "load_weights",
    "save_weights",
]

WEIGHTS, BEST = "weights.safetensors", "best.safetensors"
TASK, REPORT = "task.json", "report.jsonl"


class RunFolder:
    """A folder that one run saves what it comes to in; until it is closed, no other run may.

    What an earlier run left there stays until there are weights, or a checkpoint, of this one. A folder that
    somebody deletes meanwhile is made again.

    Args:
        path: of the folder, made if need be.
        description: how the task is made again.
        note: takes a sentence, where what an earlier run left was replaced.
        checkpoints_kept: so many, the latest.
        goes_on: what is there is of this run, which was taken up again, and stays.

    Raises:
        DataError: it cannot be made, or another run is at work in it.
    """

    def __init__(
        self,
        path: Path,
        description: Mapping[str, Any],
        note: Callable[[str], None] | None = None,
        *,
        checkpoints_kept: int = 3,
        goes_on: bool = False,
    ) -> None:
        self.path = path
        self._description = description
        self._note = note
        self._checkpoints = CheckpointFolder.inside(path, checkpoints_kept)
        self._claim: int | None = None
        self._lock = threading.Lock()  # held while the first that is kept takes the place of an earlier run's
        self._open()
        self._begun = goes_on

    def close(self) -> None:
        """Let other runs in."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def save(self, name: str, module: nn.Module) -> None:
        """Write the weights of a module into the file of that name, in place of those there so far.

        Raises:
            DataError: they cannot be written; what was there so far is there still.
        """
        self._keep(_weights_file(self.path / name, module), name)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint beside those of this run, and remove the oldest.

        Raises:
            DataError: it cannot be written; what was there so far is there still.
        """
        self._keep(self._checkpoints.writing(checkpoint), CHECKPOINTS)

    def _keep(self, writing: AbstractContextManager[object], name: str) -> None:
        with self._lock:
            if not self._is_there():
                self.close()
                self._open()
            if not self._begun:
                self._begin(writing, name)
                self._begun = True
                return
        with writing:
            pass

    def _begin(self, writing: AbstractContextManager[object], name: str) -> None:
        """Put the first that this run keeps, and its settings, in the place of all that an earlier one left.

        What can fail for want of room is done before anything is deleted. Without ``task.json`` nobody takes
        a folder for whole: so the earlier one is the first to go, and ours comes when all else is right.
        """
        replaces = (self.path / TASK).exists()
        with whole_file(self.path / TASK) as task, writing:
            task.write_text(description_text(self._description), encoding="utf-8")
            to_disk(task)
            for earlier in (TASK, REPORT, *({WEIGHTS, BEST} - {name})):
                (self.path / earlier).unlink(missing_ok=True)
            self._checkpoints.clear()
        if replaces and self._note is not None:
            self._note(f"replaced the run kept in {self.path}")

    def _open(self) -> None:
        self._begun = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim = _claimed(self.path)
        except BlockingIOError as error:
            raise DataError(
                f"another run keeps its weights in {self.path}; give this one another folder"
            ) from error
        except OSError as error:
            raise DataError(f"the folder {self.path} cannot be made: {error.strerror}") from error

    def _is_there(self) -> bool:
        """Whether the folder is still the one that was claimed."""
        if self._claim is None:
            return self.path.is_dir()
        try:
            return os.path.samestat(os.fstat(self._claim), self.path.stat())
        except OSError:
            return False


def _claimed(path: Path) -> int | None:
    """An open folder that no other process has claimed; the claim ends with the process, whatever happens.

    Raises:
        BlockingIOError: another has.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(folder)
        raise
    return folder


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────


def save_weights(path: Path, module: nn.Module) -> None:
    """Write weights, buffers and extra state of a module as safetensors.

    Raises:
        DataError: the file cannot be written.
    """
    with _weights_file(path, module):
        pass


@contextmanager
def _weights_file(path: Path, module: nn.Module) -> Iterator[None]:
    """Likewise; all of it is on the disk on entering, and has its name on leaving."""
    with whole_file(path) as part:
        part.write_bytes(to_safetensors(module))
        to_disk(part)
        yield


def load_weights(path: Path, network: Network) -> Network:
    """The same network, starting from the weights in a file.

    Raises:
        DataError: the file is missing or damaged, or holds the weights of another network.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        keep = "--keep-best SCORE " if path.name == BEST else ""
        raise DataError(
            f"{path} is not there; `akkordeon train {keep}--out {path.parent}` makes it"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return from_safetensors(content, network, path)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────


def as_json(thing: Any) -> str:
    """One line of valid JSON; what JSON has no number for (NaN, infinity) becomes null."""
    return json.dumps(finite(thing), ensure_ascii=False, allow_nan=False)


def description_text(description: Mapping[str, Any]) -> str:
    """The settings of a run for ``task.json``, with their digest."""
    plain = finite(description)
    return json.dumps({**plain, "sha256": _digest(plain)}, indent=2, ensure_ascii=False) + "\n"


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def load_description(folder: Path) -> dict[str, Any]:
    """How the task of a kept run is made again; ``"task"`` is its name.

    Raises:
        DataError: the folder or the file is missing, or the file is damaged.
    """
    path = folder / TASK
    if not path.is_file():
        missing = f"has no {TASK}" if folder.is_dir() else "does not exist"
        raise DataError(
            f"the folder {folder} {missing}; `akkordeon train --out {folder}` makes what is needed"
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(description["task"], str):
            raise TypeError("its task is no name")
        if description.pop("sha256", None) != _digest(description):
            raise ValueError("what it says does not fit its digest")
    except KeyError as error:
        raise DataError(f"{path} is damaged: it has no {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    return dict(description)
