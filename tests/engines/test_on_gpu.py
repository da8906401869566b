"""Real GPUs, where there is one: the plain loop's numbers, streams of several gates, and no waiting."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.support.harness import small_network
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import akkordeon as ak

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

ADAMW = partial(torch.optim.AdamW, lr=1e-3, fused=True)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.GELU()) for _ in range(3)), nn.Linear(64, 4)
    )


def batches(count: int = 60) -> list:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(32, 64, generator=generator), torch.randint(4, (32,), generator=generator))
        for _ in range(count)
    ]


def plain(data, make=ADAMW) -> tuple[nn.Module, list[float]]:
    trained, losses = model().cuda(), []
    optimizer = make(trained.parameters())
    for x, y in data:
        loss = cross_entropy(trained(x.cuda()), y.cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return trained, losses


def row(gates: int = 4, make=ADAMW, **recipe) -> ak.Network:
    return ak.Network.from_module(model(), gates, make, device="cuda:0", **recipe)


@pytest.mark.parametrize("device_streams", [False, True])
@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("gates", [1, 4])
def test_one_in_flight_is_the_plain_loop_to_the_bit(gates, workers, device_streams):
    data = batches()
    with ak.run(row(gates), ak.Threads(workers, device_streams=device_streams)) as session:
        result = session.attach(ak.Sentinel.train(data, cross_entropy)).wait()
        mine = session.module().state_dict()
    trained, losses = plain(data)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(mine[name].cpu(), tensor.cpu()), name
    assert result.epochs[0].loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_gates_on_streams_of_their_own_never_read_what_is_not_there_yet():
    data = batches(400)
    with ak.run(
        row(make=partial(torch.optim.SGD, lr=0.0, fused=True)), ak.Threads(5, device_streams=True)
    ) as session:
        session.attach(ak.Sentinel.train(data, cross_entropy, in_flight=8)).wait()
        result = session.attach(ak.Sentinel.train(data, cross_entropy, in_flight=8)).wait()
    _, losses = plain(data, partial(torch.optim.SGD, lr=0.0))
    assert result.epochs[0].loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.epochs[0].batches_so_far.refused == 0


def test_a_batch_that_is_not_finite_is_refused_and_changes_nothing():
    data = batches(30)
    bad = list(data)
    bad[10] = (torch.full_like(data[0][0], 1e38), data[10][1])  # finite, but not what comes out
    parts = [nn.Sequential(nn.Linear(64, 64), nn.GELU()), nn.Linear(64, 4)]
    gates = [ak.Gate(part, ADAMW, device="cuda:0") for part in parts]
    with ak.run(ak.Network(gates), ak.Threads(3)) as session:
        result = session.attach(ak.Sentinel.train(bad, cross_entropy)).wait()
        mine = session.module().state_dict()
    with ak.run(ak.Network(gates), ak.Threads(3)) as session:
        session.attach(ak.Sentinel.train(data[:10] + data[11:], cross_entropy)).wait()
        without = session.module().state_dict()
    assert all(torch.equal(mine[name], without[name]) for name in mine)
    assert result.batches.refused == 1


def test_no_batch_makes_the_host_wait():
    with ak.run(row(), ak.Threads(1)) as session:
        data = [(x.pin_memory(), y.pin_memory()) for x, y in batches(40)]
        session.attach(ak.Sentinel.train(data[:3], cross_entropy)).wait()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            session.attach(ak.Sentinel.train(data, cross_entropy)).wait()
    waits = [e.name for e in found.events() if "Synchronize" in e.name or e.name == "aten::item"]
    assert len(waits) < 40, waits  # the losses, at the end of the epoch, and nothing else
    assert sum("Synchronize" in name for name in waits) < 10, waits


def test_validation_meanwhile_and_the_weights_after_it_are_whole():
    with ak.run(row(), ak.Threads(5, device_streams=True)) as session:
        training = session.attach(ak.Sentinel.train(batches(200), cross_entropy, in_flight=4))
        session.attach(
            ak.Sentinel.validate(batches(5), cross_entropy, every_updates=20, scores={"acc": ak.accuracy})
        )
        training.wait()
        assert all(t.isfinite().all() for t in session.module().state_dict().values())


def test_gates_on_the_gpu_and_on_the_cpu_work_in_one_row():
    data, parts = batches(40), list(model())
    gates = [ak.Gate(part, ADAMW, device="cuda:0" if i % 2 else None) for i, part in enumerate(parts)]
    with ak.run(ak.Network(gates), ak.Threads(3)) as session:
        result = session.attach(ak.Sentinel.train(data, cross_entropy, in_flight=3)).wait()
    assert result.batches.trained == 40


def test_a_small_network_learns_with_every_schedule_there():
    for schedule in (ak.Async(), ak.Flush(2), ak.TwoBuffers(2)):
        network = small_network(schedule=schedule)
        gates = [ak.Gate(g.module, g.optimizer, device="cuda:0") for g in network.gates]
        data = [(torch.randn(8, 6), torch.randint(4, (8,))) for _ in range(20)]
        with ak.run(ak.Network(gates, schedule=schedule), ak.Threads(3)) as session:
            assert (
                session.attach(ak.Sentinel.train(data, cross_entropy, in_flight=2)).wait().batches.trained
                == 20
            )
