"""A checkpoint taken on threads goes on on a Ray cluster, and the other way round."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import akkordeon as ak

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

X = torch.randn(256, 6, generator=torch.Generator().manual_seed(1))
Y = X.sum(1).gt(0).long()


def _adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def _network():
    torch.manual_seed(3)
    return ak.Network(
        [ak.Gate(nn.Sequential(nn.Linear(6, 16), nn.ReLU()), _adam), ak.Gate(nn.Linear(16, 2), _adam)]
    )


def _trainer():
    batches = ak.Batches(X, Y, 16, shuffle=True)
    return ak.Sentinel.train(batches, nn.CrossEntropyLoss(), epochs=12, name="a")


@pytest.mark.timeout(120)
def test_a_checkpoint_goes_on_under_another_engine():
    from tests.support.warm import LendingRay

    with ak.run(_network(), ak.Threads(1)) as session:
        session.attach(_trainer())
        session.wait(60)
        whole = session.states()
    kept = None
    for number, engine in enumerate([ak.Threads(2), LendingRay()], 1):
        with ak.run(_network(), engine, resume=kept) as session:
            trainer = session.attach(_trainer())
            assert engine.wait_until(lambda trainer=trainer, n=number: trainer.epochs_done >= 4 * n, 60)
            kept = session.checkpoint(timeout=30)
    with ak.run(_network(), ak.Threads(1), resume=kept) as session:
        trainer = session.attach(_trainer())
        session.wait(60)
        again = session.states()
    assert trainer.batches.as_tuple() == (192, 192, 0, 0)
    for address, state in whole.items():
        for name, tensor in state.items():
            assert torch.equal(tensor, again[address][name])
