"""From what a user calls a task, its name or ``FILE.py:FUNCTION``, to the task or its network."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import nn

from akkordeon.core.errors import TaskError, explain
from akkordeon.experiments.tasks.named import NAMED, NETWORKS, needs_folder
from akkordeon.experiments.tasks.task import Task, kind_of
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.network import Network

__all__ = ["load_function", "load_gate", "load_network", "load_task"]


def load_task(name: str, data_dir: str | Path | None = None, seed: int = 0) -> Task:
    """Make a task.

    Args:
        name: a key of ``NAMED``, or ``FILE.py:FUNCTION``, where the function takes nothing and returns a
            :class:`Task`.
        data_dir: where the files of a data set are, for the names that need it.
        seed: of torch's random state while the task is made, that is, of the first weights.

    Raises:
        TaskError: this does not lead to a task.
        DataError: the data is not there, or is damaged.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        if ":" in name:
            return _from_file(name)
        return _named(name, data_dir)


def _named(name: str, data_dir: str | Path | None) -> Task:
    if name not in NAMED:
        if name.endswith(".py"):
            raise TaskError(
                f"{name} is a file; name the function that makes the task too, as in {name}:my_task"
            )
        raise TaskError(f"there is no task {name!r}; there are {', '.join(NAMED)}, and FILE.py:FUNCTION")
    if not needs_folder(name):
        return NAMED[name]()
    if data_dir is None:
        raise TaskError(
            f"{name} needs the folder of its files: give --data-dir DIR, or set AKKORDEON_DATA; "
            f"`akkordeon data {name} --data-dir DIR` downloads them"
        )
    return NAMED[name](data_dir)


def load_network(name: str, seed: int = 0) -> Network:
    """Make the network of a task without its data, for networks that are fed from elsewhere.

    Args:
        name: a key of ``NETWORKS``, or ``FILE.py:FUNCTION``, where the function takes nothing and returns a
            :class:`Task` or a :class:`Network`.
        seed: of the first weights.

    Raises:
        TaskError: this does not lead to a network.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        if ":" in name:
            made = _made_by_file(name)
            if not isinstance(made, Network | Task):
                raise TaskError(f"{name} must return an akkordeon.Network or a Task, got {kind_of(made)}")
            return made if isinstance(made, Network) else made.network
        if name in NETWORKS:
            return NETWORKS[name]()
    raise TaskError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}, and FILE.py:FUNCTION")


def load_gate(name: str, seed: int = 0) -> Gate:
    """Make a gate that is to come into a row.

    Args:
        name: ``FILE.py:FUNCTION``, where the function takes nothing and returns a :class:`Gate`, or a module
            that has nothing to learn.
        seed: of the first weights.

    Raises:
        TaskError: this does not lead to a gate.
        RecipeError: none can be made of the module.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        made = _made_by_file(name)
    if isinstance(made, nn.Module):
        made = Gate(made)
    if not isinstance(made, Gate):
        raise TaskError(f"{name} must return an akkordeon.Gate, or a module, got {kind_of(made)}")
    return made


def load_function(name: str) -> Callable[..., Any]:
    """The function that ``FILE.py:FUNCTION`` names, such as one that makes an optimizer.

    Raises:
        TaskError: this does not lead to a function.
    """
    with _function_in_file(name) as (function, _):
        return function


# ── from a file ──────────────────────────────────────────────────────────────────────────────────────


def _from_file(name: str) -> Task:
    task = _made_by_file(name)
    if not isinstance(task, Task):
        raise TaskError(f"{name} must return an akkordeon.Task, got {kind_of(task)}")
    return task


def _made_by_file(name: str) -> Any:
    """What the function in the file returns."""
    with _function_in_file(name) as (make, path):
        return _explained(make, name, path)


@contextmanager
def _function_in_file(name: str) -> Iterator[tuple[Callable[..., Any], Path]]:
    """The function, and where the file is; meanwhile it may import its neighbours."""
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise TaskError(f"{name} leads nowhere: there is no file {file or repr(file)}")
    with _importing_beside(path):
        module = _explained(partial(_imported, path), file, path)
        found = getattr(module, function, None)
        if not callable(found):
            raise TaskError(f"{name} leads nowhere: {file} has no function {function!r}")
        yield found, path


class _AsItStands(SourceFileLoader):
    """Compiles a file as a script: one that was changed twice in a second is not taken for the one before."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file, of which nothing is kept beside it."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _imported(path: Path) -> ModuleType:
    if path.suffix != ".py":
        raise TaskError(f"{path} is not a Python file; its name must end with .py")
    name = f"akkordeon_task_{path.stem}"
    loader = _AsItStands(name, os.fspath(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None, "a loader was given"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    loader.exec_module(module)
    return module


@contextmanager
def _importing_beside(path: Path) -> Iterator[None]:
    """Let the file import its neighbours, as a script may."""
    folder = os.fspath(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _explained(function: Callable[[], Any], what: str, path: Path) -> Any:
    """The result of the user's own code; what it raises is told in a sentence, with the line."""
    try:
        return function()
    except TaskError:
        raise
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        where = f" in line {lines[-1]}" if lines else ""
        raise TaskError(f"{what} failed{where}: {explain(error)}") from error
