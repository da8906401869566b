"""Outer optimizers against sums done by hand."""

from __future__ import annotations

import pytest
import torch

from akkordeon.core.errors import RecipeError
from akkordeon.downpour.delayed_nesterov import DelayedNesterov


def applied(make, pushes, start=0.0):
    """The weight after each push."""
    weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make([weight])
    path = []
    for push in pushes:
        weight.grad = torch.tensor([push], dtype=torch.float64)
        optimizer.step()
        path.append(weight.item())
    return path


def test_two_rounds_of_two_pushes_by_hand():
    """N = 2, ε = 0.5, β = 0.8, c = 0: plain halves, and momentum with every second push."""
    path = applied(lambda p: DelayedNesterov(p, lr=0.5, momentum=0.8, buffer=2), [4.0, 2.0, 1.0, 3.0])
    first = -0.5 * 4 / 2  # -1
    m = 3.0  # (4 + 2) / 2
    second = first - 0.5 * (0.8 * m + 2 / 2)  # -2.7
    third = second - 0.5 * 1 / 2
    m = 0.8 * m + 2.0
    fourth = third - 0.5 * (0.8 * m + 3 / 2)
    assert path == pytest.approx([first, second, third, fourth])


def test_with_a_spread_momentum_comes_in_parts_that_add_up():
    def make(p):
        return DelayedNesterov(p, lr=1.0, momentum=0.5, buffer=2, spread=0.25)

    path = applied(make, [2.0, 2.0, 0.0, 0.0])
    m = 2.0
    second = -2 / 2 - ((1 - 0.5 + 0.25) * 0.5 * m + 2 / 2)
    third = second - 0.25 * 0.5 * m
    m = 0.5 * m
    fourth = third - 0.75 * 0.5 * m
    assert path == pytest.approx([-1.0, second, third, fourth])


def test_buffers_of_one_are_torchs_nesterov():
    pushes = torch.randn(20).tolist()
    ours = applied(lambda p: DelayedNesterov(p, lr=0.7, momentum=0.9), pushes)
    theirs = applied(lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True), pushes)
    assert ours == pytest.approx(theirs)


def test_a_round_of_n_pushes_is_one_step_of_nesterov_with_their_mean():
    pushes = torch.randn(24).tolist()
    ours = applied(lambda p: DelayedNesterov(p, lr=0.7, momentum=0.9, buffer=4), pushes)[3::4]
    means = [sum(pushes[i : i + 4]) / 4 for i in range(0, 24, 4)]
    theirs = applied(lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True), means)
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    "wrong", [{"lr": -1}, {"momentum": 1.0}, {"buffer": 0}, {"buffer": 4, "spread": 0.3}]
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(RecipeError, match="delayed Nesterov has"):
        DelayedNesterov([torch.nn.Parameter(torch.zeros(1))], **wrong)
