"""The synchronous peers over gloo, one process on each machine: DDP, 1F1B and DiLoCo; and plain loops.

python benchmarks/links/gloo.py RANK HOST:PORT JOBS    # the first prints a line of JSON for each job
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from work import adam, curve, digits, measured, work_of

MACHINES = 3
OUTER_LR, OUTER_MOMENTUM = 0.7, 0.9  # of DiLoCo (arXiv:2311.08105)
KEPT_EVERY_S = 0.5

Job = dict[str, Any]


@dataclass
class Peer:
    """One step that all processes make together, the samples in it, and what is trained."""

    step: Callable[[], None]
    samples: int
    model: nn.Module


def data_of(rank: int, job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches; in a race the machine's third of MNIST, shuffled for each epoch."""
    if "data" not in job:
        return cycle(work_of(job).batches())
    (x, y), _ = digits(job["data"])
    own, generator = slice(rank, None, MACHINES), torch.Generator().manual_seed(job["seed"])
    return _shuffled(x[own], y[own], work_of(job).size, generator)


def _shuffled(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        order = torch.randperm(len(x), generator=generator)
        for some in order[: len(x) // size * size].split(size):
            yield x[some], y[some]


def usual(model: nn.Module, rank: int, job: Job) -> Callable[[], None]:
    """A step of the plain loop, on a batch of this machine's."""
    loss, optimizer, data = work_of(job).loss, adam(model.parameters()), data_of(rank, job)

    def step() -> None:
        x, y = next(data)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    return step


def plain(rank: int, job: Job) -> Peer:
    """A loop of its own on each machine, that sends nothing; the rate is three times the first machine's."""
    work = work_of(job)
    model = nn.Sequential(*work.parts(job.get("seed", 0)))
    return Peer(usual(model, rank, job), MACHINES * work.size, model)


def ddp(rank: int, job: Job) -> Peer:
    """Gradients averaged between the machines at each step; each has a batch of its own."""
    work = work_of(job)
    own = nn.Sequential(*work.parts(job.get("seed", 0)))
    model = nn.parallel.DistributedDataParallel(own, gradient_as_bucket_view=True)
    return Peer(usual(model, rank, job), MACHINES * work.size, own)


def one_f_one_b(rank: int, job: Job) -> Peer:
    """A stage on each machine; a batch goes through in micro-batches, and one update follows."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    work = work_of(job)
    own = work.parts(0)[rank]
    stage = PipelineStage(own, rank, MACHINES, torch.device("cpu"))
    schedule = Schedule1F1B(stage, job["micro_batches"], loss_fn=work.loss)
    optimizer, data = adam(own.parameters()), data_of(rank, job)

    def step() -> None:
        x, y = next(data)
        optimizer.zero_grad()
        inputs = [x] if stage.is_first else []
        schedule.step(*inputs, target=y if stage.is_last else None, return_outputs=False)
        optimizer.step()

    return Peer(step, work.size, own)


def diloco(rank: int, job: Job) -> Peer:
    """So many local steps on each machine; then all take an outer step with the mean of how far they came."""
    work = work_of(job)
    model = nn.Sequential(*work.parts(job.get("seed", 0)))
    local_step = usual(model, rank, job)
    start = [p.detach().clone().requires_grad_() for p in model.parameters()]
    outer = torch.optim.SGD(start, lr=OUTER_LR, momentum=OUTER_MOMENTUM, nesterov=True)

    def step() -> None:
        for _ in range(job["local_steps"]):
            local_step()
        _mean_differences(start, list(model.parameters()))
        outer.step()
        with torch.no_grad():
            for now, kept in zip(model.parameters(), start, strict=True):
                now.copy_(kept)

    return Peer(step, MACHINES * work.size * job["local_steps"], model)


@torch.no_grad()
def _mean_differences(start: list[Tensor], now: list[nn.Parameter]) -> None:
    """Give each weight of the start, as a gradient, the mean over all machines of start − now."""
    flat = torch.cat([(a - b).flatten() for a, b in zip(start, now, strict=True)])
    dist.all_reduce(flat)
    flat /= MACHINES
    for kept, mean in zip(start, flat.split([p.numel() for p in start]), strict=True):
        kept.grad = mean.view_as(kept)


PEERS = {"plain": plain, "ddp": ddp, "1f1b": one_f_one_b, "diloco": diloco}


def agree(seconds: float) -> float:
    said = torch.tensor([seconds], dtype=torch.float64)
    dist.broadcast(said, 0)
    return float(said)


def raced(peer: Peer, job: Job) -> list[tuple[float, float]]:
    """Seconds and accuracy of the model as it was about twice a second; nobody waits for the accuracy."""
    kept: list[tuple[float, nn.Module]] = []
    dist.barrier()
    began_s = time.perf_counter()
    while agree(took_s := time.perf_counter() - began_s) < job["seconds"]:
        if dist.get_rank() == 0 and (not kept or took_s - kept[-1][0] >= KEPT_EVERY_S):
            kept.append((took_s, copy.deepcopy(peer.model)))
        peer.step()
    return curve(kept, digits(job["data"])[1])


def main() -> None:
    rank, at, jobs = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    patience = timedelta(seconds=300)
    dist.init_process_group(
        "gloo", init_method=f"tcp://{at}", rank=rank, world_size=MACHINES, timeout=patience
    )
    for job in jobs:
        peer = PEERS[job["peer"]](rank, job)
        if "data" in job:
            found: dict[str, Any] = {"curve": raced(peer, job)}
        else:
            units = peer.samples * work_of(job).units
            found = {"units_per_s": units / measured(peer.step, job["seconds"], agree)}
        if rank == 0:
            print(json.dumps({"name": job["name"]} | found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
