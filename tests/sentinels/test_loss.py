"""What a loss function is given, and what it may give."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from akkordeon.core.errors import RecipeError
from akkordeon.sentinels import loss
from akkordeon.sentinels.loss import GraphCheck, LossInputs, to_targets_device


class Pair(NamedTuple):
    one: torch.Tensor
    other: torch.Tensor


@pytest.mark.parametrize(
    "form", [lambda y: (y, y), lambda y: [y, y], lambda y: {"a": [y], "b": (y,)}, lambda y: Pair(y, y)]
)
def test_targets_move_to_the_device_of_the_outputs_whatever_they_are_in(form):
    moved = to_targets_device(form(torch.zeros(2)), torch.empty(2, device="meta"))
    assert type(moved) is type(form(torch.zeros(2)))
    parts = [part for value in (moved.values() if isinstance(moved, dict) else [moved]) for part in value]
    assert [part.device.type for part in parts] == ["meta", "meta"]


@pytest.mark.parametrize("y", [None, "cat", 3, np.zeros(2), {"words"}])
def test_targets_of_other_kinds_come_to_the_loss_as_they_are(y):
    assert to_targets_device(y, torch.empty(2, device="meta")) is y


def leaf_and_loss(*more):
    leaf = torch.randn(2, 3, requires_grad=True)
    value = leaf.square().mean()
    for weight in more:
        value = value + weight.square().sum()
    return value, leaf


def test_a_loss_that_takes_weights_in_later_is_refused_as_soon_as_it_ends_in_another_operation():
    check, weight = GraphCheck(), torch.randn(4, requires_grad=True)
    for _ in range(5):
        check.look(*leaf_and_loss())
    with pytest.raises(RecipeError, match=r"a trainable weight of its own, of shape \(4,\)"):
        check.look(*leaf_and_loss(weight))


def test_a_loss_that_takes_weights_in_later_is_refused_before_twice_as_many_batches():
    check, weight = GraphCheck(), torch.randn(4, requires_grad=True)
    constant = torch.ones(4)
    for _ in range(9):
        check.look(*leaf_and_loss(constant))
    for _ in range(10, 16):
        check.look(*leaf_and_loss(constant, weight))
    with pytest.raises(RecipeError, match="a trainable weight of its own"):
        check.look(*leaf_and_loss(constant, weight))


def test_few_graphs_of_losses_are_followed(monkeypatch):
    followed = []
    monkeypatch.setattr(loss, "graph_behind", lambda outputs: followed.append(outputs) or ())
    check = GraphCheck()
    for _ in range(1000):
        check.look(*leaf_and_loss())
        check.look(*leaf_and_loss(torch.ones(4)))
    assert len(followed) == 11


@functools.wraps(F.mse_loss)
def wrapped(out, y):
    return F.mse_loss(out.mul_(2), y)


@pytest.mark.parametrize(
    ("function", "shares"),
    [(F.mse_loss, True), (lambda out, y: out.mul_(2).sum(), False), (wrapped, False)],
    ids=["of PyTorch", "of the user", "that claims to be of PyTorch"],
)
def test_only_a_loss_that_writes_to_nothing_is_given_the_outputs_themselves(function, shares):
    """Nobody else may see what a loss writes; who has scores gets a copy in any case."""
    outputs = torch.ones(3, requires_grad=True)
    given = LossInputs(outputs, function)
    assert (given.payload is outputs) is shares
    function(given.payload, torch.zeros(3))
    given.unchanged().mul_(5)
    assert outputs.tolist() == [1.0, 1.0, 1.0]
