"""Rules for stale gradients, against the formulas of the paper written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.harness import backward, do, forward, gate_alone, sends
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.experiments.laboratory.delayed_row import DelayedRow
from akkordeon.experiments.laboratory.delays import Fixed
from akkordeon.pipeline.staleness.delay_compensation import BLOCK

SHAPES = [(1,), (7, 5), (0,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (2, BLOCK + 3)]


def random_step(shape, seed):
    """A gradient, the weights now and those then, of sizes that make the correction matter."""
    torch.manual_seed(seed)
    return torch.randn(shape), torch.randn(shape), torch.randn(shape)


def wide(*some):
    return [tensor.numpy().astype(np.float64) for tensor in some]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_constant_variant_is_the_papers_formula(shape):
    for strength, rule in (
        (0.04, ak.DelayCompensation("constant")),
        (0.5, ak.DelayCompensation("constant", 0.5)),
    ):
        gradient, now, then = random_step(shape, 1)
        g, w, w_bak = wide(gradient, now, then)
        (corrected,) = rule.correct([gradient], [now], [then], 3, rule.initial([now]))
        assert corrected.shape == gradient.shape
        np.testing.assert_allclose(
            corrected.numpy(), g + strength * g * g * (w - w_bak), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_adaptive_variant_is_the_papers_formula_over_many_updates(shape):
    rule = ak.DelayCompensation("adaptive")
    state, mean_square = rule.initial([torch.empty(shape)]), np.zeros(shape)
    for step, staleness in enumerate([1, 4, 0, 2, 0, 1]):
        gradient, now, then = random_step(shape, step)
        if staleness == 0:
            then = now
        g, w, w_bak = wide(gradient, now, then)
        mean_square = 0.95 * mean_square + 0.05 * g * g
        expected = g + 2 / np.sqrt(mean_square + 1e-7) * g * g * (w - w_bak)
        (corrected,) = rule.correct([gradient], [now], [then], staleness, state)
        np.testing.assert_allclose(corrected.numpy(), expected, rtol=2e-4, atol=1e-5)


def test_its_numbers_can_be_chosen():
    rule = ak.DelayCompensation("adaptive", strength=0.3, decay=0.5, epsilon=0.1)
    gradient, now, then = random_step((20,), 0)
    g, w, w_bak = wide(gradient, now, then)
    (corrected,) = rule.correct([gradient], [now], [then], 1, rule.initial([now]))
    expected = g + 0.3 / np.sqrt(0.5 * g * g + 0.1) * g * g * (w - w_bak)
    np.testing.assert_allclose(corrected.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["constant", "adaptive"])
def test_a_fresh_gradient_is_not_touched_in_any_bit(variant):
    rule = ak.DelayCompensation(variant)
    gradient, now, _ = random_step((BLOCK + 5,), 0)
    was = gradient.clone()
    (corrected,) = rule.correct([gradient], [now], [now], 0, rule.initial([now]))
    assert torch.equal(corrected, was)


def test_strides_of_weights_and_gradients_do_not_matter():
    gradient, now, then = random_step((3, BLOCK), 0)
    rule = ak.DelayCompensation("adaptive")
    (plain,) = rule.correct([gradient], [now], [then], 1, rule.initial([now]))
    turned = [tensor.t().contiguous().t() for tensor in (gradient, now, then)]
    (other,) = rule.correct([turned[0]], [turned[1]], [turned[2]], 1, rule.initial([turned[1]]))
    assert torch.equal(plain, other)


RULES = [ak.Stash(), ak.Latest(), ak.DelayCompensation("constant"), ak.DelayCompensation("adaptive")]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("staleness", [0, 2])
def test_no_rule_writes_to_a_gradient_or_a_weight_and_none_stays_none(rule, staleness):
    gradient, now, then = random_step((BLOCK + 1,), 0)
    was = [tensor.clone() for tensor in (gradient, now, then)]
    state = rule.initial([now, now])
    corrected = rule.correct([gradient, None], [now, now], [then, then], staleness, state)
    assert corrected[1] is None
    assert all(torch.equal(a, b) for a, b in zip((gradient, now, then), was, strict=True))


@pytest.mark.parametrize("variant", ["constant", "adaptive"])
def test_half_precision_stays_half_precision(variant):
    rule = ak.DelayCompensation(variant)
    some = [tensor.bfloat16() for tensor in random_step((9,), 0)]
    (corrected,) = rule.correct([some[0]], [some[1]], [some[2]], 1, rule.initial([some[1]]))
    assert corrected.dtype == torch.bfloat16


def test_a_sparse_gradient_is_refused_with_what_to_do():
    rule = ak.DelayCompensation("constant")
    with pytest.raises(RecipeError, match="sparse=False"):
        rule.correct([torch.eye(2).to_sparse()], [torch.eye(2)], [torch.eye(2)], 1, None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"variant": "adaptiv"}, "'constant' or 'adaptive', got 'adaptiv'"),
        ({"strength": -1.0}, "at least 0, got -1.0"),
        ({"decay": 1.0}, r"in \[0, 1\), got 1.0"),
        ({"epsilon": 0.0}, "above 0, got 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(RecipeError, match=sentence):
        ak.DelayCompensation(**arguments)


def second_of_two_stale(rule) -> tuple:
    """What a linear gate sends back for the second of two batches: as it is, by old and by new weights."""
    gate = gate_alone(nn.Linear(4, 3), staleness=rule)
    before = gate.weights.now[0].detach().clone()
    do(gate, forward(0, torch.randn(2, 4)), forward(1, torch.randn(2, 4)), backward(0, torch.randn(2, 3)))
    after = gate.weights.now[0].detach().clone()
    assert not torch.equal(before, after)
    upstream = torch.randn(2, 3)
    sent = sends(do(gate, backward(1, upstream)))[0]
    assert sent.staleness == (1,)
    return sent.payload, upstream @ before, upstream @ after


def test_stash_runs_the_backward_on_the_weights_of_the_forward():
    for rule in RULES:
        if rule.keeps_weights:
            sent, with_old, with_new = second_of_two_stale(rule)
            assert torch.allclose(sent, with_old)
            assert not torch.allclose(sent, with_new)


def test_latest_runs_it_on_whatever_the_weights_are_by_then():
    sent, with_old, with_new = second_of_two_stale(ak.Latest())
    assert torch.allclose(sent, with_new)
    assert not torch.allclose(sent, with_old)


def test_a_gate_gives_the_rule_the_weights_then_and_now_and_the_measured_staleness():
    seen = []

    class Spy(ak.Rule):
        def correct(self, gradients, now, then, staleness, state):
            seen.append((now[0], then[0], staleness))
            return gradients

    gate = gate_alone(nn.Linear(4, 3), staleness=Spy())
    do(gate, *(forward(n, torch.randn(2, 4)) for n in range(3)))
    versions = [gate.weights.now[0]]
    for n in range(3):
        do(gate, backward(n, torch.randn(2, 3)))
        versions.append(gate.weights.now[0])
    assert [(now is versions[n], then is versions[0], s) for n, (now, then, s) in enumerate(seen)] == [
        (True, True, 0),
        (True, True, 1),
        (True, True, 2),
    ]


@pytest.mark.parametrize(("staleness", "factor"), [(0, 1), (1, 1), (4, 1), (5, 4 / 5), (8, 1 / 2)])
def test_delay_adaptive_steps_are_whole_up_to_what_is_usual(staleness, factor):
    gradient = torch.tensor([1.0, -2.0])
    (corrected,) = ak.DelayAdaptive(4).correct([gradient], [gradient], [gradient], staleness, None)
    assert torch.equal(corrected, gradient * factor)
    with pytest.raises(RecipeError, match="up to which steps are whole"):
        ak.DelayAdaptive(0)


@pytest.mark.parametrize(
    ("staleness", "updates", "factor"),
    [(0, 0, 1), (1, 0, 1), (4, 0, 1 / 4), (4, 50, 1 / 2), (4, 100, 1), (9, 50, 1 / 3), (9, 5000, 1)],
)
def test_annealed_steps_grow_with_training_and_shrink_with_staleness(staleness, updates, factor):
    assert ak.AnnealedSteps(100).lr_factor(staleness, updates) == pytest.approx(factor)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_rule_for_steps_scales_the_learning_rate_of_that_update_alone(make, accumulate):
    rates = []

    class Noted(make):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    module = nn.Linear(2, 1, bias=False)
    recipe = ak.Gate(module, lambda p: Noted(p, lr=0.5), ak.AnnealedSteps(10), accumulate=accumulate)
    row = DelayedRow(ak.Network([recipe]), Fixed(3))
    for _ in range(12):
        row.learn(torch.randn(4, 2), torch.randn(4, 1), nn.functional.mse_loss)
    row.finish()
    seen = [batch // accumulate - max(0, batch - 3) // accumulate for batch in range(12)]
    taus = [max(seen[first : first + accumulate]) for first in range(0, 12, accumulate)]
    assert rates == pytest.approx([0.5 * max(1, tau) ** -max(0, 1 - k / 10) for k, tau in enumerate(taus)])
