"""The peers: the plain loop, DDP and 1F1B, of which the latter two have two processes over gloo."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from race import Curve, Point, Run, followed
from torch import Tensor, nn
from work import Batch, Work

sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
from processes import Meeting, gloo, gloo_store, intra_op_threads, launch

__all__ = ["ddp", "one_f_one_b", "plain"]

PROCESSES = 2
MICRO_BATCHES = 4
LIMIT_S = 1_800.0


def plain(run: Run, threads: int = 2) -> Curve:
    """The usual loop in this process."""
    model = run.work.model(run.seed)
    with intra_op_threads(threads):
        return followed(run, _Loop(run.work, model), lambda: run.work.judged(model))


class _Loop:
    """The usual loop's body, on a share of each batch."""

    def __init__(self, work: Work, model: nn.Module, rank: int = 0, processes: int = 1) -> None:
        self._work, self._model = work, model
        self._rank, self._processes = rank, processes
        self._optimizer = work.optimizer(model.named_parameters())

    def __call__(self, batches: Sequence[Batch]) -> None:
        for x, y in batches:
            self._optimizer.zero_grad()
            outputs = self._model(self._share(x))
            self._work.loss(outputs, self._share(y)).backward()
            self._optimizer.step()

    def _share(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self._processes)[self._rank]


@dataclass
class _Job:
    """What both processes are given; the model and the figures lie in shared memory."""

    run: Run
    model: nn.Module
    meeting: Meeting = field(default_factory=lambda: Meeting(PROCESSES))
    points: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.model.share_memory()
        self.points = torch.zeros(len(self.run.parts) + 1, 3, dtype=torch.float64).share_memory_()

    def follow(self, rank: int, train: Any, own: nn.Module, shared: nn.Module) -> None:
        """Train; the first process judges the weights that each leaves in the shared module."""

        def judged() -> float:
            shared.load_state_dict(own.state_dict())
            self.meeting.wait()
            return self.run.work.judged(self.model) if rank == 0 else 0.0

        curve = followed(self.run, train, judged, self.meeting.wait)
        if rank == 0:
            self.points.copy_(torch.tensor([astuple(point) for point in curve], dtype=torch.float64))


def _launched(worker: Any, run: Run) -> Curve:
    job = _Job(run, run.work.model(run.seed))
    with gloo_store(job.meeting):
        launch(worker, PROCESSES, LIMIT_S, job)
    return [Point(int(units), seconds, loss) for units, seconds, loss in job.points.tolist()]


def ddp(run: Run) -> Curve:
    """Each process has half of every batch; the gradients are averaged."""
    return _launched(_ddp_worker, run)


def _ddp_worker(rank: int, job: _Job) -> None:
    with gloo(rank, job.meeting):
        own = copy.deepcopy(job.model)  # out of shared memory
        replica = nn.parallel.DistributedDataParallel(own, gradient_as_bucket_view=True)
        loop = _Loop(job.run.work, replica, rank, PROCESSES)
        kept = job.model if rank == 0 else copy.deepcopy(job.model)
        job.follow(rank, loop, own, kept)


def one_f_one_b(run: Run) -> Curve:
    """Each process has half of the model; batches go through in micro-batches, and an update follows each.

    A weight that both halves use is one tensor on each side, equal at the start. The gradients of both are
    added up by an all_reduce before the update, so both make the same one.
    """
    return _launched(_one_f_one_b_worker, run)


def _one_f_one_b_worker(rank: int, job: _Job) -> None:
    # here and not above: only this peer needs it, and it takes long to import
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    work = job.run.work
    with gloo(rank, job.meeting):
        shared = work.stages(job.model)[rank]
        own = copy.deepcopy(shared)
        stage = PipelineStage(own, rank, PROCESSES, torch.device("cpu"))
        schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=work.loss)
        optimizer = work.optimizer(own.named_parameters())

        def train(batches: Sequence[Batch]) -> None:
            for x, y in batches:
                optimizer.zero_grad()
                inputs = [x] if stage.is_first else []
                schedule.step(*inputs, target=y if stage.is_last else None, return_outputs=False)
                for weight in work.tied(own):
                    dist.all_reduce(weight.grad)
                optimizer.step()

        job.follow(rank, train, own, shared)
