"""Basis rotation, against its formula written out with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, small_network
from tests.support.runs import is_replayed_to_the_bit, is_taken_up_to_the_bit
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.optimizers.basis_rotation import RotatedAdamW

LR, BETAS, EPS, DECAY, EVERY = 0.1, (0.8, 0.9), 1e-3, 0.05, 2
SETTINGS = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "every": EVERY}


def applied(start, gradients):
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = RotatedAdamW([weight], **SETTINGS)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    return weight.detach().numpy()


def by_hand(w, gradients, first_bases):
    (b1, b2), (m, n) = BETAS, w.shape
    left, right = np.zeros((m, m)), np.zeros((n, n))
    momentum, squares = np.zeros((m, n)), np.zeros((m, n))
    for t, g in enumerate(gradients, 1):
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        momentum = b1 * momentum + (1 - b1) * g
        if t == 1:
            u, v = first_bases
            for moments, basis in ((left, u), (right, v)):  # all that there is to know of eigenvectors
                values = np.diag(basis.T @ moments @ basis)
                np.testing.assert_allclose(basis @ np.diag(values) @ basis.T, moments, atol=1e-12)
                np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), atol=1e-12)
        elif (t - 1) % EVERY == 0:
            rows, columns = np.argsort(-np.diag(u.T @ left @ u)), np.argsort(-np.diag(v.T @ right @ v))
            squares = squares[rows][:, columns]
            u, v = np.linalg.qr(left @ u[:, rows])[0], np.linalg.qr(right @ v[:, columns])[0]
        squares = b2 * squares + (1 - b2) * (u.T @ g @ v) ** 2
        step = u @ ((u.T @ momentum @ v) / (np.sqrt(squares) + EPS)) @ v.T
        w = (1 - LR * DECAY) * w - LR * np.sqrt(1 - b2**t) / (1 - b1**t) * step
    return w


def first_bases(gradient):
    """Those of the first update: what has no direction in its gradient may be in any."""
    weight = nn.Parameter(torch.zeros(gradient.shape, dtype=torch.float64))
    optimizer = RotatedAdamW([weight], **SETTINGS)
    weight.grad = torch.from_numpy(gradient)
    optimizer.step()
    return tuple(optimizer.state[weight][basis].numpy() for basis in "uv")


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (6, 2), (1, 4)], ids=str)
def test_it_is_the_papers_formula_over_many_updates(shape):
    start, gradients = drawn(*shape), drawn(9, *shape)
    expected = by_hand(start, gradients, first_bases(gradients[0]))
    np.testing.assert_allclose(applied(start, gradients), expected, rtol=1e-6, atol=1e-8)


def test_one_update_of_a_diagonal_gradient_by_hand():
    """Its directions are the weights themselves: √(1 − β2)/(1 − β1)·(1 − β1)·g / (√((1 − β2)·g²) + ε)."""
    gradient = np.diag([2.0, -0.5])
    root = np.sqrt(0.1)
    expected = -LR * root * gradient / (root * np.abs(gradient) + EPS)
    np.testing.assert_allclose(applied(np.zeros((2, 2)), [gradient]), expected, atol=1e-12)


def test_it_goes_the_same_way_in_whatever_basis_the_weights_are():
    """What Adam does not: with A W Bᵀ for W, and so A G Bᵀ for G, it comes to A W Bᵀ."""
    start, gradients = drawn(4, 3), drawn(8, 4, 3)
    a, b = np.linalg.qr(drawn(4, 4))[0], np.linalg.qr(drawn(3, 3))[0]
    turned = applied(a @ start @ b.T, np.array([a @ g @ b.T for g in gradients]))
    np.testing.assert_allclose(turned, a @ applied(start, gradients) @ b.T, rtol=1e-6, atol=1e-8)


def test_matrices_are_its_own_and_the_rest_is_adamws():
    module = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 4), "linear": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    )
    rotated, others = (group["params"] for group in ak.basis_rotation(module.named_parameters()).param_groups)
    assert [id(p) for p in rotated] == [id(module["linear"].weight)]
    assert len(others) == 4


def test_with_one_batch_in_flight_it_is_the_plain_loop_with_it_to_the_bit():
    network, batches = small_network().replacing(optimizer=ak.basis_rotation), batches_of(25)
    model = network.module()
    optimizers = [ak.basis_rotation(list(part.named_parameters())) for part in model]
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    with ak.run(network, engine=ak.Threads(1)) as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1))
        session.wait(timeout=WAIT_S)
        assert same_bits(session.module(), model)


def test_a_run_taken_up_goes_on_to_the_bit():
    network, batches = small_network().replacing(optimizer=ak.basis_rotation), batches_of(32)
    assert is_taken_up_to_the_bit(network, batches, at=13, in_flight=4)


def test_a_recorded_run_is_replayed_to_the_same_bits(tmp_path):
    network = small_network().replacing(optimizer=ak.basis_rotation)
    train = ak.Sentinel.train(batches_of(30), F.cross_entropy, in_flight=5)
    assert is_replayed_to_the_bit(network, [train], ak.Threads(2), tmp_path / "run.record")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"betas": (0.9, 1.0)}, "betas of at least 0 and below 1"),
        ({"every": 0}, "between two looks for a basis"),
    ],
)
def test_what_it_cannot_work_with_is_refused_in_a_sentence(settings, sentence):
    with pytest.raises(RecipeError, match=sentence):
        RotatedAdamW([nn.Parameter(torch.zeros(2, 2))], **settings)
    with pytest.raises(RecipeError, match=r"matrices alone, got a parameter of shape \(3,\)"):
        RotatedAdamW([nn.Parameter(torch.zeros(3))])
