"""What many tests need: one intra-op thread, small networks, a session that cannot hang."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from tests.support.terminals import Terminal


def pytest_configure() -> None:
    """Take signals that we were begun to ignore: Ctrl-C in a shell's background, SIGHUP under nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def one_intra_op_thread() -> Iterator[None]:
    """A sum differs in its last bits between one and two threads; bit for bit needs one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def random_state() -> Iterator[None]:
    """Fails a test that moves the global random state of torch or NumPy."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.fixture(autouse=True, scope="session")
def ray_cluster_ends() -> Iterator[None]:
    """End the Ray cluster that the tests share, if any of them started it."""
    yield
    if "tests.support.warm" in sys.modules:
        sys.modules["tests.support.warm"].end_cluster()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens a terminal with a command in it; all of them have this folder as their home."""
    from tests.support.terminals import open_terminals

    with open_terminals(tmp_path) as terminal:
        yield terminal


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Three machines, 10.77.0.1 to 10.77.0.3: the names of their network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    with ExitStack() as until_the_end:
        try:
            names = until_the_end.enter_context(
                importlib.import_module("machines").Machines("akkordeon", "10.77.0").up()
            )
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {error}")
        Path("/tmp/ray").mkdir(exist_ok=True)  # where each machine sees its own
        yield names
