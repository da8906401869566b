"""What many tests need: one intra-op thread, small networks, a session that cannot hang."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch


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


@pytest.fixture(autouse=True, scope="session")
def ray_cluster_ends() -> Iterator[None]:
    """End the Ray cluster that the tests share, if any of them started it."""
    yield
    if "warm" in sys.modules:
        sys.modules["warm"].end_cluster()
