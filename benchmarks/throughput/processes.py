"""Fresh processes of this machine, which meet, and the group that gloo makes of them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE_S = 120.0  # for a start-up, for one epoch, for one wait on another process
HOST = "127.0.0.1"


@dataclass
class Meeting:
    """Where so many processes wait for each other."""

    processes: int
    barrier: Barrier = field(init=False)
    port: int = 0  # of gloo's store

    def __post_init__(self) -> None:
        self.barrier = mp.get_context("spawn").Barrier(self.processes)

    def wait(self) -> None:
        """Wait for all the others."""
        self.barrier.wait(PATIENCE_S)


def launch(worker: Callable[..., None], processes: int, limit_s: float, *args: Any) -> None:
    """Run worker(rank, *args) in fresh processes; a child's error is raised here, none outlives the limit."""
    children = mp.spawn(worker, args, nprocs=processes, join=False, daemon=True)
    deadline = time.monotonic() + limit_s
    try:
        while not children.join(timeout=1.0, grace_period=2.0):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{worker.__name__}: not finished after {limit_s:.0f} s")
    finally:
        for process in children.processes:
            process.kill()
            process.join()


@contextmanager
def gloo_store(meeting: Meeting) -> Iterator[None]:
    """Hold the processes' meeting point open here, on a port that the system chooses."""
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    meeting.port = store.port
    yield


@contextmanager
def gloo(rank: int, meeting: Meeting) -> Iterator[None]:
    """A process group over the loopback interface; one intra-op thread each."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    store = dist.TCPStore(HOST, meeting.port, is_master=False)
    patience = timedelta(seconds=PATIENCE_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=meeting.processes, timeout=patience)
    yield
    meeting.wait()
    dist.destroy_process_group()


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Run with so many intra-op threads, then put the old number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
