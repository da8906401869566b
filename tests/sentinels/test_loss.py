"""What a loss function is given, and what it may give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from akkordeon.sentinels.loss import to_targets_device


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
