"""The peers: plain PyTorch, Hogwild, DDP and 1F1B, each timed epoch by epoch on the same batches.

    python benchmarks/throughput/peers.py --check

Every peer is `peer(setting, x, y, epochs, optimizer) -> seconds per epoch`. It trains a given `model=` in
place, so that a check can look at the weights afterwards; without one it builds `build(setting, seed=0)`.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from processes import PATIENCE_S, Meeting, gloo, gloo_store, intra_op_threads, launch
from settings import MakeOptimizer, Setting, build, dataset, gates, slices
from torch import Tensor, nn

WARM_UP = 4  # batches before the clock: thread pools, DDP's buckets, the pipeline's buffers

Step = Callable[[slice], None]


# -- plain ---------------------------------------------------------------------------------------------------


def plain(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
    optimizer: MakeOptimizer,
    *,
    threads: int = 1,
    model: nn.Sequential | None = None,
) -> list[float]:
    """Seconds per epoch of the usual loop in this process."""
    step = update_of(model or build(setting, seed=0), x, y, optimizer)
    with intra_op_threads(threads):
        return timed(step, slices(len(x), setting.batch), epochs)


def update_of(model: nn.Module, x: Tensor, y: Tensor, optimizer: MakeOptimizer) -> Step:
    """The usual loop's body: one update on one slice of the data."""
    updater = optimizer(model.parameters())

    def step(part: slice) -> None:
        updater.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        updater.step()

    return step


def timed(step: Step, parts: list[slice], epochs: int, meet: Callable[[], Any] = lambda: None) -> list[float]:
    """Seconds of each pass over the parts, from one meeting of all processes to the next, after a warm-up."""
    for part in parts[:WARM_UP]:
        step(part)
    seconds = []
    for _ in range(epochs):
        meet()
        start = time.perf_counter()
        for part in parts:
            step(part)
        meet()
        seconds.append(time.perf_counter() - start)
    return seconds


# -- peers of several processes ------------------------------------------------------------------------------


@dataclass
class Job:
    """What every process of a peer is given; tensors, model and results lie in shared memory."""

    setting: Setting
    x: Tensor
    y: Tensor
    epochs: int
    optimizer: MakeOptimizer
    meeting: Meeting
    model: nn.Sequential
    micro_batches: int = 1
    seconds: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x.share_memory_()
        self.y.share_memory_()
        self.model.share_memory()
        self.seconds = torch.zeros(self.epochs, dtype=torch.float64).share_memory_()

    def time(self, rank: int, step: Step, parts: list[slice]) -> None:
        """Run the epochs; the first process writes down how long they took."""
        seconds = timed(step, parts, self.epochs, self.meeting.wait)
        if rank == 0:
            self.seconds.copy_(torch.tensor(seconds))


def run_job(worker: Callable[[int, Job], None], job: Job) -> list[float]:
    """Launch the processes of one peer and hand back what they measured."""
    launch(worker, job.meeting.processes, PATIENCE_S * (1 + job.epochs), job)
    return job.seconds.tolist()


# -- Hogwild -------------------------------------------------------------------------------------------------


def hogwild(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
    optimizer: MakeOptimizer,
    *,
    processes: int = 2,
    model: nn.Sequential | None = None,
) -> list[float]:
    """Seconds per epoch of processes that split the batches and share the parameters without locks."""
    model = model or build(setting, seed=0)
    return run_job(hogwild_worker, Job(setting, x, y, epochs, optimizer, Meeting(processes), model))


def hogwild_worker(rank: int, job: Job) -> None:
    """Every processes-th batch of the epoch, on the shared parameters, with gradients of its own."""
    torch.set_num_threads(1)
    parts = slices(len(job.x), job.setting.batch)[rank :: job.meeting.processes]
    job.time(rank, update_of(job.model, job.x, job.y, job.optimizer), parts)


# -- torch.distributed over gloo -----------------------------------------------------------------------------


def run_gloo_job(worker: Callable[[int, Job], None], job: Job) -> list[float]:
    """Like run_job, of processes that are a group of gloo's."""
    with gloo_store(job.meeting):
        return run_job(worker, job)


def ddp(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
    optimizer: MakeOptimizer,
    *,
    processes: int = 2,
    model: nn.Sequential | None = None,
) -> list[float]:
    """Seconds per epoch of DistributedDataParallel; each process computes its share of every batch."""
    if setting.batch % processes:
        raise ValueError(f"a batch of {setting.batch} does not split into {processes} equal shares")
    model = model or build(setting, seed=0)
    return run_gloo_job(ddp_worker, Job(setting, x, y, epochs, optimizer, Meeting(processes), model))


def ddp_worker(rank: int, job: Job) -> None:
    """The rank-th share of every batch, gradients averaged between the processes."""
    share = job.setting.batch // job.meeting.processes
    parts = slices(len(job.x), share)[: len(slices(len(job.x), job.setting.batch)) * job.meeting.processes]
    with gloo(rank, job.meeting):
        model = copy.deepcopy(job.model)  # out of shared memory: every replica has its own parameters
        replica = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        job.time(rank, update_of(replica, job.x, job.y, job.optimizer), parts[rank :: job.meeting.processes])
        if rank == 0:
            job.model.load_state_dict(model.state_dict())


def one_f_one_b(
    setting: Setting,
    x: Tensor,
    y: Tensor,
    epochs: int,
    optimizer: MakeOptimizer,
    *,
    processes: int = 2,
    micro_batches: int = 4,
    model: nn.Sequential | None = None,
) -> list[float]:
    """Seconds per epoch of a synchronous pipeline, one stage per process, one update per batch."""
    if setting.batch % micro_batches:
        raise ValueError(
            f"a batch of {setting.batch} does not split into {micro_batches} equal micro-batches"
        )
    model = model or build(setting, seed=0)
    job = Job(setting, x, y, epochs, optimizer, Meeting(processes), model, micro_batches=micro_batches)
    return run_gloo_job(one_f_one_b_worker, job)


def one_f_one_b_worker(rank: int, job: Job) -> None:
    """One stage of the pipeline: the first is fed the inputs, the last the labels."""
    # here and not above: only this peer needs it, and it takes long to import
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    with gloo(rank, job.meeting):
        shared = stages(job.model, job.meeting.processes)[rank]
        own = copy.deepcopy(shared)
        stage = PipelineStage(own, rank, job.meeting.processes, torch.device("cpu"))
        schedule = Schedule1F1B(stage, job.micro_batches, loss_fn=F.cross_entropy)
        optimizer = job.optimizer(own.parameters())

        def step(part: slice) -> None:
            optimizer.zero_grad()
            inputs = [job.x[part]] if stage.is_first else []
            schedule.step(*inputs, target=job.y[part] if stage.is_last else None, return_outputs=False)
            optimizer.step()

        job.time(rank, step, slices(len(job.x), job.setting.batch))
        shared.load_state_dict(own.state_dict())


def stages(model: nn.Sequential, count: int) -> list[nn.Sequential]:
    """The row of gates cut where the busiest stage has the least to do; parameters stay the model's."""
    row = gates(model)
    if count > len(row):
        raise ValueError(f"{len(row)} gates cannot make {count} stages")
    # two products per weight, forward and weight gradient; past the first gate a third, the input gradient
    work = [(3 if i else 2) * sum(p.numel() for p in gate.parameters()) for i, gate in enumerate(row)]
    edges = [(0, *cuts, len(row)) for cuts in combinations(range(1, len(row)), count - 1)]
    best = min(edges, key=lambda edge: max(sum(work[a:b]) for a, b in pairwise(edge)))
    return [nn.Sequential(*(layer for gate in row[a:b] for layer in gate)) for a, b in pairwise(best)]


# -- the check -----------------------------------------------------------------------------------------------


def check_peers() -> None:
    """Assert that all learn, that the synchronous ones do plain's arithmetic, that errors come through."""
    setting, epochs = Setting("check", (784, 64, 32, 10), 64), 2
    sgd = partial(torch.optim.SGD, lr=0.1)
    x, y = learnable(2_000)  # 31 full batches and a rest: unequal halves for Hogwild
    reference = build(setting, seed=0)
    before = loss_of(reference, x, y)
    plain(setting, x, y, epochs, sgd, model=reference)
    for name, peer, options, same in (
        ("plain, 2 threads", plain, {"threads": 2}, True),
        ("Hogwild, 1 process", hogwild, {"processes": 1}, True),
        ("Hogwild, 2 processes", hogwild, {}, False),
        ("DDP, 2 processes", ddp, {}, True),
        ("1F1B, 2 processes", one_f_one_b, {}, True),
    ):
        model = build(setting, seed=0)
        seconds = peer(setting, x, y, epochs, sgd, model=model, **options)
        after, apart = loss_of(model, x, y), distance(model, reference)
        print(f"{name:22} loss {before:.3f} -> {after:.3f}, {apart:.1e} from plain")
        assert len(seconds) == epochs, (name, seconds)
        assert min(seconds) > 0, (name, seconds)
        assert after < 0.8 * before, (name, before, after)
        assert not same or apart < 1e-4, (name, apart)
    for peer in (hogwild, ddp, one_f_one_b):
        check_error_surfaces(peer, setting, x, torch.full_like(y, 99))
        print(f"{peer.__name__:22} raises its children's errors")


def check_error_surfaces(peer: Callable[..., Any], setting: Setting, x: Tensor, wrong: Tensor) -> None:
    """Assert that labels out of range, which fail in a child, raise here."""
    try:
        peer(setting, x, wrong, 1, partial(torch.optim.SGD, lr=0.01))
    except mp.ProcessRaisedException as error:
        assert "Target 99 is out of bounds" in str(error), error  # noqa: PT017 - no pytest here
    else:
        raise AssertionError(f"{peer.__name__}: the child's error did not surface")


def learnable(samples: int) -> tuple[Tensor, Tensor]:
    """The benchmark's data with every input moved towards the centre of its class."""
    x, y = dataset(samples)
    centres = torch.rand(10, 784, generator=torch.Generator().manual_seed(1))
    return x + centres[y] - 1, y


@torch.no_grad()
def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The mean cross-entropy on all samples."""
    return F.cross_entropy(model(x), y).item()


@torch.no_grad()
def distance(model: nn.Module, other: nn.Module) -> float:
    """The largest difference between two models' parameters."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        sys.exit("usage: python benchmarks/throughput/peers.py --check")
    check_peers()
