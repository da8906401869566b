"""Gap-Aware, against its formula written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, small_network
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.staleness.gap_aware import BLOCK

SHAPES = [(), (1,), (7, 5), (0,), (BLOCK + 1,)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_divided_by_how_far_the_weights_have_gone(shape):
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64)]
    rule = ak.GapAware(decay=0.9)
    state, mean_square = rule.initial(weights), np.zeros(shape)
    for update, staleness in enumerate([0, 1, 2, 0, 3, 2]):
        if update:
            weights.append(weights[-1] + 0.1 * torch.randn(shape, dtype=torch.float64))
            step = (weights[-1] - weights[-2]).numpy()
            share = 1.0 if update == 1 else 0.1
            mean_square = (1 - share) * mean_square + share * step * step
        gradient, then = torch.randn(shape, dtype=torch.float64), weights[-1 - staleness]
        (corrected,) = rule.correct([gradient], [weights[-1]], [then], staleness, state)
        gap = np.abs((weights[-1] - then).numpy()) / (np.sqrt(mean_square) + 1e-8)
        np.testing.assert_allclose(corrected.numpy(), gradient.numpy() / (1 + gap), rtol=1e-9)
        if not staleness:
            assert corrected is gradient


def test_weights_without_a_gradient_are_followed_all_the_same():
    rule, weight = ak.GapAware(), torch.zeros(2)
    state = rule.initial([weight])
    assert rule.correct([None], [weight + 1], [weight], 1, state) == [None]
    (corrected,) = rule.correct([torch.ones(2)], [weight + 1], [weight], 1, state)
    torch.testing.assert_close(corrected, torch.full((2,), 0.0) + 1 / (1 + 1 / 0.999**0.5))


def test_of_several_gradients_for_one_update_the_first_takes_in_the_update_before():
    rule, before = ak.GapAware(decay=0.5), torch.zeros(1)
    now = before + 1
    state = rule.initial([before])
    for _ in range(3):
        (corrected,) = rule.correct([torch.ones(1)], [now], [before], 1, state)
    torch.testing.assert_close(corrected, torch.full((1,), 0.5))
    assert state.kept[0][0].item() == 1.0
    later = rule.initial([before])
    later.kept[0].copy_(state.kept[0])  # as from a checkpoint between them
    rule.correct([torch.ones(1)], [now], [before], 1, later)
    assert later.kept[0][0].item() == 1.0


def test_a_frozen_parameter_of_whole_numbers_stays_what_it_is():
    rule, weights = ak.GapAware(), [torch.zeros(2), torch.arange(3)]
    state = rule.initial(weights)
    for _ in range(2):
        found = rule.correct([torch.ones(2), None], weights, weights, 1, state)
    assert found[1] is None


def test_with_one_batch_in_flight_it_is_the_plain_loop_to_the_bit():
    network, modules = small_network(), []
    for rule in (ak.Stash(), ak.GapAware()):
        with ak.run(network.replacing(staleness=rule), engine=ak.Threads(2)) as session:
            session.attach(ak.Sentinel.train(batches_of(20), F.cross_entropy, in_flight=1))
            session.wait(timeout=WAIT_S)
            modules.append(session.module())
    assert same_bits(*modules)


def test_a_checkpoint_has_how_far_weights_move():
    network, batches = small_network().replacing(staleness=ak.GapAware()), batches_of(24)

    def trained(part, resume=None):
        with ak.run(network, engine=ak.Simulator(seed=1), resume=resume) as session:
            session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=4, name=f"of {len(part)}"))
            session.wait(timeout=WAIT_S)
            return session.checkpoint()

    first = trained(batches[:10])
    rule = first.stages["gate/0"].learner["rule"]
    assert rule
    assert all(bool(kept[0].any()) for kept in rule.values())
    second = trained(batches[10:], resume=first)
    after = second.stages["gate/0"].learner["rule"]
    assert not any(torch.equal(rule[name], kept) for name, kept in after.items())


def test_what_it_cannot_work_with_is_refused_in_a_sentence():
    with pytest.raises(RecipeError, match=r"below 1, got 1\.0"):
        ak.GapAware(decay=1.0)
    with pytest.raises(RecipeError, match="epsilon of Gap-Aware"):
        ak.GapAware(epsilon=0)
    rule, weight = ak.GapAware(), torch.zeros(3, 2)
    sparse = torch.sparse_coo_tensor([[1]], torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(RecipeError, match="dense gradients"):
        rule.correct([sparse], [weight], [weight], 1, rule.initial([weight]))
