"""Tasks: a network, what it learns from, and how that is judged; by name, or from a file of the user's."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from akkordeon.core.checks import require_whole
from akkordeon.core.errors import DataError, TaskError, explain
from akkordeon.data import datasets
from akkordeon.data.batches import Batches
from akkordeon.data.sources import as_batches
from akkordeon.experiments.presets import optimizer_named
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.sentinels.scores import Score, accuracy

__all__ = ["NAMED", "Task", "digits", "fashion_mnist", "load_network", "load_task", "mnist", "xor"]


@dataclass(frozen=True)
class Task:
    """A network, what it learns from, and how that is judged.

    Args:
        network: the recipe.
        train: what it learns from: a pair of tensors (x, y), :class:`Batches`, a ``DataLoader``, or any
            iterable of batches.
        validate: what it is judged by, likewise.
        loss: from (outputs, y) to one number.
        scores: what else to report, by name.
        epochs: how often to read ``train`` through, where nobody says otherwise.
        batch_size: for pairs of tensors, where nobody says otherwise.
        in_flight: batches each training sentinel has under way, where nobody says otherwise. More than one
            makes gradients stale: measure that they do not train a worse network.

    Raises:
        TaskError: something is not what it should be.
    """

    network: Network
    train: Any
    validate: Any
    loss: Loss
    scores: Mapping[str, Score] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 128
    in_flight: int = 1

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if not isinstance(self.network, Network):
            raise TaskError(f"a task's network is a Network, got {_kind(self.network)}")
        if not callable(self.loss):
            raise TaskError(f"a task's loss is a function of (outputs, y), got {_kind(self.loss)}")
        if not isinstance(self.scores, Mapping):
            raise TaskError(f"a task's scores are a dict of functions by name, got {_kind(self.scores)}")
        for what in ("epochs", "batch_size", "in_flight"):
            require_whole(f"a task's {what}", getattr(self, what), error=TaskError)
        for what in ("train", "validate"):
            try:
                as_batches(getattr(self, what), self.batch_size)
            except DataError as error:
                raise TaskError(f"a task cannot {what} with this: {error}") from error

    def train_batches(self, batch_size: int | None = None, seed: int = 0) -> Any:
        """The training data in batches; a pair of tensors is shuffled anew in every epoch.

        Args:
            batch_size: the task's own if not given.
            seed: of the shuffling.

        Raises:
            TaskError: a batch size was asked for, but the task brings batches that cannot be cut anew.
        """
        batches = as_batches(self.train, batch_size or self.batch_size)
        if isinstance(self.train, tuple) and isinstance(batches, Batches):  # a pair of tensors
            return replace(batches, shuffle=True, seed=seed)
        if batch_size is None:
            return self.train
        if isinstance(self.train, Batches):
            return self.train.with_batch_size(batch_size)
        raise TaskError(
            f"the task's training data is a {_kind(self.train)} with batches of its own; "
            "the batch size is set there"
        )


# ── by name ──────────────────────────────────────────────────────────────────────────────────────────


def digits() -> Task:
    """The 8×8 digits of scikit-learn, for a small network in three gates; seconds, and no download.

    Accuracy after 40 epochs, mean of 5 seeds: 0.991 with 1, 2 or 3 batches in flight, 0.988 with 5.
    """
    network = _mlp(64, 256, 128, 10, lr=1e-3)
    return _classification(network, datasets.digits(), epochs=40, batch_size=32, in_flight=3)


def mnist(folder: str | Path) -> Task:
    """MNIST from the files in ``folder``, for 784-512-512-10 in three gates.

    Adam's usual 1e-3 is too much for gradients a few updates old: the accuracy dips now and then. At 3e-4 the
    accuracy after 7 epochs, mean of 2 seeds, is 0.979 with 1, 0.980 with 2, 0.979 with 3 batches in flight.
    """
    network = _mlp(784, 512, 512, 10, lr=3e-4)
    return _classification(network, datasets.mnist(folder), epochs=7, in_flight=3)


def fashion_mnist(folder: str | Path) -> Task:
    """Fashion-MNIST, as :func:`mnist`, but with one batch in flight."""
    dataset = datasets.mnist(folder, name="fashion-mnist")
    return _classification(_mlp(784, 512, 512, 10, lr=3e-4), dataset, epochs=7)


def xor() -> Task:
    """50,000 random corners of a square, one at a time, for a 2-2-1 net of two sigmoid gates."""
    x = torch.randint(2, (50_000, 2)).float()
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    layers = [nn.Sequential(nn.Linear(n_in, n_out), nn.Sigmoid()) for n_in, n_out in ((2, 2), (2, 1))]
    network = Network([Gate(layer, optimizer_named("sgd", 0.5)) for layer in layers])
    examples, judges = ((inputs, (inputs.sum(1, keepdim=True) == 1).float()) for inputs in (x, corners))
    return Task(network, examples, judges, _half_square, {"right": _right}, epochs=1, batch_size=1)


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().mean()


def _right(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of outputs within 0.1 of their target."""
    return ((outputs - targets).abs() < 0.1).float().mean()


def _classification(network: Network, dataset: datasets.Dataset, **usual: int) -> Task:
    return Task(network, dataset.train, dataset.test, cross_entropy, {"accuracy": accuracy}, **usual)


def _mlp(*sizes: int, lr: float) -> Network:
    """A linear layer a gate, ReLU after all but the last."""
    linear = [nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes)]
    modules = [*(nn.Sequential(layer, nn.ReLU()) for layer in linear[:-1]), linear[-1]]
    return Network([Gate(module, optimizer_named("adam", lr)) for module in modules])


NAMED: dict[str, Callable[..., Task]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "xor": xor,
}


def load_task(name: str, data_dir: str | Path | None = None, seed: int = 0) -> Task:
    """Make a task.

    Args:
        name: ``digits``, ``mnist``, ``fashion-mnist``, ``xor``, or ``FILE.py:FUNCTION``, where the
            function takes nothing and returns a :class:`Task`.
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
    if name in ("digits", "xor"):
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
        name: ``mlp`` (784-512-512-10, for MNIST), ``digits``, or ``FILE.py:FUNCTION``, where the function
            takes nothing and returns a :class:`Task` or a :class:`Network`.
        seed: of the first weights.

    Raises:
        TaskError: this does not lead to a network.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        if ":" in name:
            made = _made_by_file(name)
            if not isinstance(made, Network | Task):
                raise TaskError(f"{name} must return an akkordeon.Network or a Task, got {_kind(made)}")
            return made if isinstance(made, Network) else made.network
        if name in ("mlp", "mnist", "fashion-mnist"):
            return _mlp(784, 512, 512, 10, lr=3e-4)
        if name == "digits":
            return digits().network
    raise TaskError(f"there is no network {name!r}; there are mlp, digits, and FILE.py:FUNCTION")


# ── from a file ──────────────────────────────────────────────────────────────────────────────────────


def _from_file(name: str) -> Task:
    task = _made_by_file(name)
    if not isinstance(task, Task):
        raise TaskError(f"{name} must return an akkordeon.Task, got {_kind(task)}")
    return task


def _made_by_file(name: str) -> Any:
    """What the function in the file returns."""
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise TaskError(f"{name} leads nowhere: there is no file {file or repr(file)}")
    with _at_home(path):
        module = _told(partial(_imported, path), file, path)
        make = getattr(module, function, None)
        if not callable(make):
            raise TaskError(f"{name} leads nowhere: {file} has no function {function!r}")
        return _told(make, name, path)


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"akkordeon_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{path} is not a Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


@contextmanager
def _at_home(path: Path) -> Iterator[None]:
    """Let the file import its neighbours, as a script may."""
    home = os.fspath(path.parent)
    sys.path.insert(0, home)
    try:
        yield
    finally:
        sys.path.remove(home)


def _told(function: Callable[[], Any], what: str, path: Path) -> Any:
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


def _kind(thing: object) -> str:
    return "None" if thing is None else f"{type(thing).__name__}"
