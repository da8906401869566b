"""A row of gates at exact delays: with none it is the plain loop, with others τ is what was asked for."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import same_bits
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.delays import Drawn, Fixed, PerStage, delays_of

STEPS = 30


def network(lr=0.1):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 8), nn.Tanh())]
    gates = [
        ak.Gate(layer, lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9))
        for layer in (*layers, nn.Linear(8, 3))
    ]
    return ak.Network(gates)


def batches(steps=STEPS):
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randn(4, 8, generator=draw), torch.randint(3, (4,), generator=draw)


def trained(delays, recipe=None):
    row = DelayedRow(recipe or network(), delays)
    losses = [row.learn(x, y, F.cross_entropy) for x, y in batches()]
    row.finish()
    return row, losses


def test_without_delay_it_gives_the_bits_of_the_plain_loop():
    model = network().module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = []
    for x, y in batches():
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    row, losses = trained(Fixed(0))
    assert losses == expected
    assert same_bits(row.module(), model)


@pytest.mark.parametrize(
    ("delays", "taus"),
    [(Fixed(0), (0, 0, 0)), (Fixed(4), (4, 4, 4)), (PerStage(2), (2, 1, 0)), (PerStage(7), (7, 4, 0))],
)
def test_each_gate_learns_from_gradients_of_the_age_asked_for(delays, taus):
    row, _ = trained(delays)
    for (_, seen), tau in zip(row.staleness.items(), taus, strict=True):
        assert seen == dict.fromkeys(range(tau), 1) | {tau: STEPS - tau}
    assert list(row.copies.values()) == [tau + 1 for tau in taus]


@pytest.mark.parametrize(
    ("rule", "held"),
    [
        (ak.Latest(), [1, 1, 1]),  # gates have no weights but those they are at
        (ak.DiscrepancyCorrection(), [1, 1, 1]),
        (ak.VerticalSync(), [5, 5, 5]),  # further down are kept versions that batches are still to come for
    ],
    ids=["latest", "discrepancy", "vertical"],
)
def test_copies_are_those_that_a_rule_keeps(rule, held):
    row, _ = trained(PerStage(4), network().replacing(staleness=rule))
    assert list(row.copies.values()) == held


def test_a_late_gradient_is_that_of_the_weights_its_forward_had():
    """One weight w, loss w², rate 1/4: the gradient of a batch is 2w as it was at its forward."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    recipe = ak.Network([ak.Gate(layer, lambda p: torch.optim.SGD(p, lr=0.25))])
    row = DelayedRow(recipe, Fixed(1))
    found = [row.learn(torch.ones(1, 1), None, _large) for _ in range(4)]
    weights = [1.0, 1.0, 0.5, 0.0]  # w_t+1 = w_t - w_t-1 / 2, as the first gradient comes one late
    assert found == [w * w for w in weights]


def test_drawn_delays_have_the_mean_asked_for_and_the_longest_is_bounded():
    drawn = [Drawn(4, seed=3).of(batch, 3) for batch in range(2000)]
    assert all(len(set(of_gates)) == 1 for of_gates in drawn)
    assert sum(first for first, *_ in drawn) / 2000 == pytest.approx(4, abs=0.4)
    assert max(first for first, *_ in drawn) <= 16
    row, _ = trained(Drawn(4, seed=3))
    assert {sum(seen.values()) for seen in row.staleness.values()} == {STEPS}


def test_training_that_diverges_says_so():
    row = DelayedRow(network(lr=1e30), Fixed(0))
    (first, second) = batches(2)
    row.learn(*first, _large)
    with pytest.raises(DataError, match=r"the loss of batch 1 is inf"):
        row.learn(*second, _large)


def _large(outputs, y):
    return outputs.square().sum()


def test_a_delay_is_a_whole_number():
    with pytest.raises(RecipeError, match="a delay"):
        delays_of("fixed", -1)
