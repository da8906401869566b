"""A learner with other settings goes on from the one before, or that one goes on as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.support.harness import same_bits
from torch import nn

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.surgery.change import changed
from akkordeon.pipeline.updater import Updater
from akkordeon.pipeline.weights import Weights


def momentum(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def adagrad(params):
    return torch.optim.Adagrad(params, lr=0.1)


def scheduled(params):
    optimizer = momentum(params)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def waiting(params):
    optimizer = momentum(params)
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


class Learner:
    """Weights with an updater, beside the same module in a plain loop."""

    def __init__(self, optimizer=momentum, rule=None, ema=None):
        self.module = nn.Linear(4, 3)
        self.plain = copy.deepcopy(self.module)
        self.weights = Weights(self.module)
        self.updater = Updater(self.weights, optimizer, rule or ak.Stash(), None, "gate/1", ema)
        built = optimizer(self.plain.parameters())
        self.optimizer = built[0] if isinstance(built, tuple) else built

    def change(self, **settings):
        self.updater = changed(self.updater, self.weights, "gate/1", settings)

    def learn(self, times=3, plain=True):
        for _ in range(times):
            gradients = [torch.randn_like(weight) for weight in self.plain.parameters()]
            for weight, gradient in zip(self.plain.parameters(), gradients, strict=True):
                weight.grad = gradient.clone()
            self.updater.update(gradients, self.weights.now, 0)
            if plain:
                self.optimizer.step()

    @property
    def is_as_plain(self):
        return same_bits(self.module, self.plain)


@pytest.mark.parametrize(
    "settings", [{"lr": 0.01}, {"momentum": 0.5, "weight_decay": 0.1}, {"nesterov": True}]
)
def test_options_of_the_optimizer_are_as_if_they_were_set_in_a_plain_loop(settings):
    learner = Learner()
    learner.learn()
    learner.change(**settings)
    for group in learner.optimizer.param_groups:
        group.update(settings)
    learner.learn()
    assert learner.is_as_plain


def test_frozen_weights_stay_and_learn_again_with_the_momentum_they_had():
    learner = Learner()
    learner.learn()
    learner.change(frozen=True)
    learner.learn(plain=False)
    assert learner.is_as_plain
    learner.change(frozen=False)
    learner.learn()
    assert learner.is_as_plain


@pytest.mark.parametrize("optimizer", [momentum, adagrad, torch.optim.Adam])
def test_an_optimizer_that_is_reset_is_a_new_one_with_the_settings_it_had(optimizer):
    learner = Learner(optimizer)
    learner.learn()
    learner.change(reset_optimizer=True, lr=0.02)
    learner.optimizer = optimizer(learner.plain.parameters())
    learner.optimizer.param_groups[0]["lr"] = 0.02
    learner.learn()
    assert learner.is_as_plain


@pytest.mark.parametrize("optimizer", [momentum, scheduled])
def test_a_boost_multiplies_learning_rates_in_so_many_updates_whoever_sets_them(optimizer):
    learner = Learner(optimizer)
    built = optimizer(learner.plain.parameters())
    learner.optimizer, scheduler = built if isinstance(built, tuple) else (built, None)
    (group,) = learner.optimizer.param_groups
    learner.change(boost=(3.0, 4))
    for update in range(6):
        rate = group["lr"]
        group["lr"] = rate * 3.0 if update < 4 else rate
        learner.learn(1)
        group["lr"] = rate
        if scheduler is not None:
            scheduler.step()
    assert learner.is_as_plain
    assert learner.updater.boost is None


def test_a_boost_goes_on_through_another_change_and_ends_with_none():
    learner = Learner()
    learner.change(boost=(3.0, 4))
    learner.learn(1)
    learner.change(momentum=0.5)
    assert learner.updater.boost == (3.0, 3)
    learner.change(boost=None)
    assert learner.updater.boost is None


def test_another_optimizer_begins_as_new():
    learner = Learner(waiting)
    learner.learn()
    learner.change(optimizer=adagrad, lr=0.3)
    learner.optimizer = torch.optim.Adagrad(learner.plain.parameters(), lr=0.3)
    learner.learn()
    assert learner.is_as_plain


def test_what_did_not_learn_learns_once_it_has_an_optimizer():
    module = nn.Linear(4, 3)
    weights = Weights(module)
    before = copy.deepcopy(module.state_dict())
    updater = changed(
        Updater(weights, None, ak.Stash(), None, "gate/1"), weights, "gate/1", {"optimizer": momentum}
    )
    updater.update([torch.ones_like(p) for p in module.parameters()], weights.now, 0)
    assert not same_bits(module, before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": -1}, "lr of gate/1 is a number of at least 0, got -1"),
        ({"lr": float("nan")}, "got nan"),
        ({"nesterov": 1}, "True or False"),
        ({"learning_rate": 1}, "no setting 'learning_rate': .* its optimizer has dampening, lr"),
        ({"params": []}, "no setting 'params'"),
        ({"frozen": 1}, "frozen is True or False"),
        ({"boost": 3.0}, r"the boost of gate/1 is \(factor, updates\), got 3.0"),
        ({"boost": (float("inf"), 10)}, "the factor of the boost of gate/1 is finite, got inf"),
        ({"boost": (0, 10)}, "the factor of the boost of gate/1 is above 0, got 0"),
        ({"boost": (2, 0)}, "the updates of the boost of gate/1 is at least 1, got 0"),
        ({"lr": 0.5, "optimizer": lambda params: 3}, "gave a int"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_has_changed(settings, said):
    learner = Learner(ema=0.5)
    learner.learn()
    average = learner.weights.average
    with pytest.raises(RecipeError, match=said):
        learner.change(**settings)
    assert learner.weights.average is average
    learner.learn()
    assert learner.is_as_plain


def test_a_learning_rate_that_a_scheduler_sets_is_refused_and_one_that_waits_for_a_score_is_not():
    learner = Learner(scheduled)
    with pytest.raises(RecipeError, match=r"is set by its scheduler, StepLR, .*set\(optimizer="):
        learner.change(lr=1.0)
    learner.change(weight_decay=0.1)
    Learner(waiting).change(lr=1.0)


def cycling(params):
    optimizer = momentum(params)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=50)


# It was taken without a word, and was what the scheduler had it be after the next update.
def test_a_momentum_that_a_scheduler_sets_is_refused_too():
    with pytest.raises(RecipeError, match="the momentum of gate/1 is set by its scheduler, OneCycleLR"):
        Learner(cycling).change(momentum=0.5)
    Learner(cycling).change(weight_decay=0.1)


def test_an_average_of_the_weights_goes_on():
    averages = []
    for is_changed in (False, True):
        torch.manual_seed(1)
        learner = Learner(ema=0.5)
        learner.learn()
        if is_changed:
            learner.change(frozen=False)
        learner.learn()
        averages.append(learner.weights.average.pin())
    assert all(map(torch.equal, *averages))


def test_a_cut_that_was_pinned_stays_whole_under_a_rule_that_keeps_no_weights():
    learner = Learner()
    learner.learn()
    pinned = learner.weights.pin()
    was = [weight.clone() for weight in pinned]
    learner.change(staleness=ak.Latest())
    learner.learn()
    assert learner.is_as_plain
    assert all(map(torch.equal, pinned, was))
    learner.change(staleness=ak.DelayCompensation("constant"))
    now = learner.weights.now
    was = [weight.clone() for weight in now]
    learner.learn()
    assert all(map(torch.equal, now, was))


def test_a_frozen_learner_that_is_made_again_is_frozen():
    learner = Learner()
    learner.learn()
    learner.change(frozen=True)
    again = learner.updater.like()
    again.load(learner.updater.state())
    assert again.frozen
