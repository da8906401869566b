"""Tasks, by name and from files: akkordeon.experiments.tasks."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest
import torch
from tests.data.test_datasets import IDX_FILES, write
from tests.support.harness import same_bits, small_network
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import akkordeon as ak
from akkordeon.core.errors import DataError, TaskError
from akkordeon.experiments.build import build_trainers
from akkordeon.experiments.config import DownpourConfig, TrainConfig
from akkordeon.experiments.tasks.loader import load_network, load_task
from akkordeon.experiments.tasks.named import NAMED

X, Y = torch.randn(20, 6), torch.randint(4, (20,))


def task_of(**changes) -> ak.Task:
    whole = {"network": small_network(), "train": (X, Y), "validate": (X, Y), "loss": cross_entropy}
    return ak.Task(**{**whole, **changes})


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────


BAD = {
    "a network that is a module": ({"network": torch.nn.Linear(2, 2)}, "network is a Network, got Linear"),
    "a loss that is a number": ({"loss": 0.5}, r"loss is a function of \(outputs, y\), got float"),
    "scores that are a list": ({"scores": [ak.accuracy]}, "scores are a dict of functions by name, got list"),
    "no epochs": ({"epochs": 0}, "epochs is at least 1, got 0"),
    "no samples in a batch": ({"batch_size": 0}, "batch_size is at least 1, got 0"),
    "nothing to train with": ({"train": []}, "cannot train with this: a list of 0 batches"),
    "nothing to validate with": ({"validate": None}, "cannot validate with this: a NoneType"),
    "labels of another length": ({"train": (X, Y[:3])}, "x has 20, y has 3"),
}


@pytest.mark.parametrize(("changes", "sentence"), BAD.values(), ids=BAD.keys())
def test_a_task_refuses(changes, sentence):
    with pytest.raises(TaskError, match=sentence):
        task_of(**changes)


def labels(batches):
    return [y.tolist() for _, y in batches]


def test_a_pair_of_tensors_is_cut_and_shuffled_by_the_seed():
    task = task_of(train=(X, torch.arange(20)), batch_size=8)
    one, again, other = (labels(task.train_batches(seed=seed)) for seed in (1, 1, 2))
    assert [len(batch) for batch in one] == [8, 8, 4]
    assert one == again != other
    assert [len(batch) for batch in labels(task.train_batches(batch_size=15))] == [15, 5]


def test_batches_of_the_tasks_own_keep_their_order_and_take_another_size():
    task = task_of(train=ak.Batches(X, torch.arange(20), batch_size=10))
    assert labels(task.train_batches(seed=5)) == [list(range(10)), list(range(10, 20))]
    assert [len(batch) for batch in labels(task.train_batches(batch_size=16))] == [16, 4]


@pytest.mark.parametrize("source", [[(X, Y)], ((X, Y), (X, Y), (X, Y)), DataLoader(TensorDataset(X, Y), 5)])
def test_other_batches_stay_as_they_are_and_take_no_other_size(source):
    task = task_of(train=source)
    assert task.train_batches() is source
    with pytest.raises(TaskError, match="batches of its own; the batch size is set there"):
        task.train_batches(batch_size=3)


# ── by name ──────────────────────────────────────────────────────────────────────────────────────────


def test_digits_is_a_network_of_three_gates_and_needs_no_files():
    task = load_task("digits")
    assert len(task.network.gates) == 3
    assert task.train[0].shape == (1437, 64)
    assert task.validate[0].shape == (360, 64)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_image_tasks_read_a_folder(name, tmp_path):
    task = load_task(name, write(tmp_path, IDX_FILES))
    assert len(task.network.gates) == 3
    assert task.train[0].shape == (12, 784)
    assert (task.train[0].min(), task.train[0].max()) == (0, 1)
    assert task.epochs == 7


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_without_a_folder_they_say_how_to_get_one(name):
    with pytest.raises(
        TaskError, match=f"give --data-dir DIR, or set AKKORDEON_DATA; `akkordeon data {name}"
    ):
        load_task(name)


def test_a_folder_without_files_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="lacks a file"):
        load_task("mnist", tmp_path)


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(TaskError, match="no task 'cifar'; there are digits, mnist, fashion-mnist, xor, "):
        load_task("cifar")
    assert list(NAMED) == ["digits", "mnist", "fashion-mnist", "xor"]


def test_the_first_weights_depend_on_the_seed_alone_and_the_random_state_is_left():
    before = torch.get_rng_state()
    one, again, other = (load_task("digits", seed=seed).network.module() for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(one, again)
    assert not same_bits(one, other)


# ── from a file ──────────────────────────────────────────────────────────────────────────────────────


GOOD = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
import akkordeon as ak
from neighbour import CLASSES

@dataclass
class Sizes:
    n_in: int = 6

def make():
    module = nn.Linear(Sizes().n_in, CLASSES)
    network = ak.Network([ak.Gate(module, lambda params: torch.optim.SGD(params, lr=0.1))])
    data = torch.randn(20, 6), torch.randint(CLASSES, (20,))
    return ak.Task(network=network, train=data, validate=data, loss=nn.functional.cross_entropy)

def needs_more(n):
    return n

def fails():
    raise ValueError("the disk\\nis gone")

def asks_wrongly():
    return ak.Task(network=None, train=[], validate=[], loss=None)

def gives_nothing():
    pass

NUMBER = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("CLASSES = 4\n")
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    yield path
    sys.modules.pop("neighbour", None)


def test_a_function_in_a_file_gives_a_task_and_may_import_its_neighbours(file):
    path = list(sys.path)
    task = load_task(f"{file}:make", seed=3)
    assert isinstance(task, ak.Task)
    assert task.network.gates[0].module.out_features == 4
    assert sys.path == path
    assert same_bits(task.network.module(), load_task(f"{file}:make", seed=3).network.module())


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("absent", "mine.py has no function 'absent'"),
        ("NUMBER", "mine.py has no function 'NUMBER'"),
        ("", "mine.py has no function ''"),
        ("fails", "mine.py:fails failed in line 23: ValueError: the disk is gone"),
        ("needs_more", "mine.py:needs_more failed: TypeError: needs_more.. missing 1 required positional"),
        ("gives_nothing", "mine.py:gives_nothing must return an akkordeon.Task, got None"),
        ("asks_wrongly", "a task's network is a Network, got None"),
    ],
)
def test_a_function_that_gives_no_task_is_told_in_a_sentence(file, function, sentence):
    with pytest.raises(TaskError, match=sentence):
        load_task(f"{file}:{function}")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.py", None, "there is no file .*absent.py"),
        ("", None, "there is no file ''"),
        ("notes.txt", "make = 1", "is not a Python file; its name must end with .py"),
        ("broken.py", "def make(:", "broken.py failed: SyntaxError"),
        (
            "needy.py",
            "\nimport nowhere_to_be_found",
            "failed in line 2: ModuleNotFoundError: No module named",
        ),
    ],
)
def test_a_file_that_leads_nowhere_is_told_in_a_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=sentence):
        load_task(f"{tmp_path / name if name else ''}:make")


def test_a_task_says_how_many_batches_are_under_way_for_its_own_optimizers():
    task = load_task("digits")
    assert (task.in_flight, ak.Task(task.network, task.train, task.validate, task.loss).in_flight) == (3, 1)

    def in_flight(**settings) -> int:
        return build_trainers(task, TrainConfig(**settings))[0].in_flight

    assert in_flight() == 3
    assert in_flight(in_flight=7, lr=0.5) == 7
    assert in_flight(optimizer="sgd") == in_flight(lr=0.5) == 1
    assert in_flight(downpour=DownpourConfig(replicas=2)) == 1
    with pytest.raises(TaskError, match="in_flight is at least 1, got 0"):
        replace(task, in_flight=0)


def test_a_file_that_was_changed_within_a_second_is_read_again(tmp_path, monkeypatch):
    """What Python had compiled beside it counted as new: it goes by the second and the length of the file."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    found = []
    for size in (5, 9):
        file.write_text(
            "import akkordeon as ak\nfrom torch import nn\n\n\n"
            f"def row():\n    return ak.Network([ak.Gate(nn.Linear({size}, 3))])\n"
        )
        os.utime(file, (0, 0))
        found.append(load_network(f"{file}:row").gates[0].module.in_features)
    assert found == [5, 9]
    assert list(tmp_path.iterdir()) == [file]
