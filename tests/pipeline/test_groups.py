"""Groups of parameters with and without weight decay: pipeline/learning/groups.py."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError


def adamw(params):
    return torch.optim.AdamW(ak.decay_groups(params, 0.1), lr=1e-2)


def test_matrices_decay_and_biases_and_normalisations_do_not():
    module = nn.Sequential(nn.Conv1d(2, 3, 1), nn.LayerNorm(4), nn.Embedding(5, 2))
    decaying, others = ak.decay_groups(module.parameters(), 0.1)
    assert [tuple(p.shape) for p in decaying["params"]] == [(3, 2, 1), (5, 2)]
    assert [tuple(p.shape) for p in others["params"]] == [(3,), (4,), (4,)]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    with pytest.raises(RecipeError, match=r"weight_decay is at least 0, got -0\.1"):
        ak.decay_groups(module.parameters(), -0.1)


def test_a_row_with_a_gate_of_one_kind_trains_as_the_plain_loop_and_goes_on_in_other_gates():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 4, bias=False))
    batches = batches_of(8)
    with ak.run(ak.Network.from_module(layers, 3, adamw)) as session:
        session.attach(ak.Sentinel.train(batches[:4], F.cross_entropy, name="a")).wait(timeout=WAIT_S)
        kept = session.checkpoint()
    with ak.run(ak.Network.from_module(layers, 2, adamw), resume=kept) as session:
        session.attach(ak.Sentinel.train(batches[4:], F.cross_entropy, name="b")).wait(timeout=WAIT_S)
        ours = session.module()
    plain = copy.deepcopy(layers)
    optimizer = adamw(plain.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    assert same_bits(ours, plain)
