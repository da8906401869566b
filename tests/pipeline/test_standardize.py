"""Features brought to one scale while they come."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import akkordeon as ak


def test_it_has_the_mean_and_variance_of_all_it_was_trained_with_in_whatever_batches():
    x = 5 + 3 * torch.randn(50, 4)
    ones, whole = ak.nn.Standardize(4), ak.nn.Standardize(4)
    for part in x.split([1, 1, 7, 41]):
        ones(part)
    whole(x)
    ones.eval()
    expected = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(ones(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole(x), expected, rtol=1e-4, atol=1e-4)


def test_in_evaluation_it_takes_nothing_in():
    module = ak.nn.Standardize(2).eval()
    x = torch.randn(3, 2)
    assert torch.equal(module(x), x)
    assert module.count == 0


def test_a_feature_that_never_changes_and_one_that_is_far_off_do_no_harm():
    module = ak.nn.Standardize(2, limit=4.0)
    for _ in range(100):
        module(torch.tensor([[7.0, 0.0]]))
    assert torch.equal(module(torch.tensor([[7.0, 1e6]])), torch.tensor([[0.0, 4.0]]))


def test_in_a_gate_its_numbers_are_of_cuts_and_every_version_keeps_its_own():
    gates = [ak.Gate(ak.nn.Standardize(3)), ak.Gate(torch.nn.Linear(3, 2), lambda p: torch.optim.SGD(p, 0.1))]
    x, y = torch.randn(20, 3), torch.zeros(20, dtype=torch.long)
    with ak.run(ak.Network(gates), ak.Threads(2)) as session:
        session.attach(ak.Sentinel.train((x, y), F.cross_entropy, batch_size=5))
        session.wait(30)
        module = session.module()
    assert module[0].count == 20
    torch.testing.assert_close(module[0].mean, x.mean(0))
