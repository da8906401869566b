"""The versions of a gate's weights: an update writes new memory, and whoever holds the old keeps it."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from tests.support.harness import bits, same_bits
from torch import nn

from akkordeon.core.payload import memory
from akkordeon.pipeline.weights import Weights


def update(weights: Weights, by: float = 1.0) -> None:
    """What an optimizer does: write to the masters in place."""
    weights.prepare_update([None] * len(weights.masters))
    with torch.no_grad():
        for i in weights.trainable:
            weights.masters[i].add_(by)
    weights.publish()


def values(snapshot) -> list:
    return [tensor.detach().clone() for tensor in snapshot]


def equal(some, others) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_until_the_first_update_there_is_one_copy_of_everything():
    weights = Weights(nn.Linear(3, 2))
    assert [memory(a) for a in weights.now] == [memory(m) for m in weights.masters]


def test_an_update_leaves_every_older_version_as_it_was():
    module = nn.Linear(3, 2)
    weights = Weights(module)
    versions, was = [], []
    for _ in range(4):
        versions.append(weights.now)
        was.append(values(weights.now))
        update(weights)
    assert all(equal(version, then) for version, then in zip(versions, was, strict=True))
    assert len({memory(version[0]) for version in [*versions, weights.now]}) == 5
    assert torch.allclose(module.weight, was[0][0] + 4)


def test_batches_of_one_version_share_one_copy():
    weights = Weights(nn.Linear(3, 2))
    update(weights)
    assert weights.now is weights.now
    assert memory(weights.pin()[0]) == memory(weights.now[0]) == memory(weights.masters[0])


def test_a_backward_through_old_weights_works_after_any_number_of_updates():
    module, x = nn.Linear(3, 2), torch.randn(5, 3)
    weights, plain = Weights(module), copy.deepcopy(module)
    y, then = module(x), weights.now
    for _ in range(3):
        update(weights)
    expected = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
    assert equal(torch.autograd.grad(y.square().sum(), then), expected)


def test_tied_weights_stay_tied_and_are_counted_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    module = Tied()
    weights = Weights(module)
    assert weights.names == ["embed.weight"]
    before = weights.now
    update(weights)
    assert module.embed.weight is module.head.weight
    assert torch.equal(module.head.weight, before[0] + 1)
    weights.install(before)
    assert module.embed.weight is module.head.weight is before[0]
    y = module(torch.arange(5)).sum()
    assert torch.autograd.grad(y, before)[0].shape == (5, 3)


def test_frozen_parameters_are_shared_by_all_versions_and_take_no_gradient():
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    weights = Weights(module)
    frozen = memory(weights.now[0])
    assert weights.trainable == [1]
    update(weights)
    assert memory(weights.now[0]) == memory(weights.masters[0]) == frozen
    assert not module.weight.requires_grad
    assert module.bias.requires_grad


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_modules_follow_with_their_second_list_of_weights(kind):
    module, x = kind(3, 2, num_layers=2, bidirectional=True), torch.randn(4, 1, 3)
    weights, old = Weights(module), copy.deepcopy(module)
    before = weights.now
    update(weights, 0.1)
    new = copy.deepcopy(old)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.1)
    assert torch.equal(module(x)[0], new(x)[0])
    weights.install(before)
    assert torch.equal(module(x)[0], old(x)[0])


def test_rolling_back_forgets_a_half_made_update():
    module = nn.Linear(3, 2)
    weights, was = Weights(module), bits(module)
    weights.prepare_update([None] * len(weights.masters))
    with torch.no_grad():
        weights.masters[0].add_(1)
    weights.roll_back()
    assert same_bits(module, was)
    assert equal(weights.masters, list(was.values()))
    update(weights)  # and it goes on from there
    assert torch.equal(module.weight, was["weight"] + 1)


def test_without_keeping_updates_happen_in_place_but_pins_are_safe():
    weights = Weights(nn.Linear(3, 2), keep=False)
    then, pin = weights.now, weights.pin()
    was = values(then)
    update(weights)
    assert weights.now is then
    assert equal(then, [tensor + 1 for tensor in was])
    assert equal(pin, was)


@pytest.mark.parametrize("keep", [True, False])
def test_an_optimizer_that_gives_parameters_other_memory_is_followed(keep):
    module = nn.Linear(3, 2)
    weights, was = Weights(module, keep), bits(module)
    weights.prepare_update([None] * len(weights.masters))
    for master in weights.masters:
        master.data = master.data + 1
    weights.publish()
    assert torch.equal(module.weight, was["weight"] + 1)
    assert torch.equal(weights.now[0], was["weight"] + 1)


def test_a_module_without_parameters_has_versions_too():
    weights = Weights(nn.ReLU())
    update(weights)
    assert weights.now == weights.pin() == ()


def test_a_forward_that_writes_to_its_weights_leaves_a_pinned_cut_alone():
    module = nn.Embedding(4, 2, max_norm=0.1)
    weights = Weights(module)
    for _ in range(2):
        pinned = weights.pin()
        was = [weight.detach().clone() for weight in pinned]
        weights.begin_forward()
        module(torch.arange(4))
        weights.end_forward()
        assert equal(pinned, was)
        assert torch.equal(weights.masters[0], module.weight)
        weights.masters[0].data.mul_(100)
        weights.publish()


def test_a_forward_that_is_undone_has_written_nothing():
    module = nn.Embedding(4, 2, max_norm=0.1)
    weights, was = Weights(module), bits(module)
    before = weights.now
    weights.begin_forward()
    module(torch.arange(4))
    weights.undo_forward()
    assert weights.now is before
    assert torch.equal(module.weight, was["weight"])
    assert torch.equal(weights.masters[0], was["weight"])


class OfTheirOwn(nn.Linear):
    """A layer whose forward may do anything, as far as anybody knows."""


def test_a_parameter_put_in_place_of_another_is_taken_in_and_not_learned_any_more():
    module = OfTheirOwn(2, 1, bias=False)
    weights = Weights(module)
    weights.begin_forward()
    module.weight = nn.Parameter(torch.full((1, 2), 7.0))
    weights.end_forward()
    assert weights.masters[0].tolist() == [[7.0, 7.0]]
    assert module.weight is weights.now[0]
    assert weights.trainable == []


def test_weights_that_share_memory_share_it_after_an_update():
    one, other = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    other.weight.data = one.weight.data
    weights = Weights(nn.Sequential(one, other))
    weights.prepare_update([None, None])
    weights.masters[0].data.fill_(5.0)
    weights.publish()
    assert other.weight.tolist() == [[5.0, 5.0]]


def test_a_list_of_its_own_parameters_follows_the_versions():
    module = nn.Linear(2, 1)
    module.own = [module.weight]
    weights = Weights(module)
    assert module.own[0] is weights.now[0]
    update(weights)
    assert module.own[0] is weights.now[0]


def test_an_evaluation_that_writes_to_weights_is_forgotten():
    module = nn.Embedding(4, 2, max_norm=0.1)
    weights, was = Weights(module), bits(module)
    for _ in range(2):
        with torch.no_grad(), weights.evaluated_on(weights.now):
            module(torch.arange(4))
        assert torch.equal(module.weight, was["weight"])


def test_weights_pass_for_parameters_with_attributes_and_hooks():
    module = nn.Linear(2, 1, bias=False)
    module.weight.mark = "x"
    module.weight.register_hook(lambda gradient: gradient * 0)
    weights = Weights(module)
    update(weights)
    assert isinstance(module.weight, nn.Parameter)
    assert module.weight.mark == "x"
    (gradient,) = torch.autograd.grad(module(torch.ones(1, 2)).sum(), [weights.now[0]])
    assert not gradient.any()


@pytest.mark.parametrize(
    "module", [nn.Embedding(4, 2, max_norm=0.1), OfTheirOwn(2, 1), nn.Sequential(nn.ReLU(), OfTheirOwn(2, 1))]
)
def test_a_module_that_may_write_to_its_weights_has_fresh_memory_for_its_first_forward(module):
    weights = Weights(module)
    before = weights.now
    weights.begin_forward()
    assert weights.now is not before


def test_layers_of_pytorch_alone_are_given_no_fresh_memory():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())
    weights = Weights(module)
    before = weights.now
    weights.begin_forward()
    weights.end_forward()
    assert weights.now is before
    module[0].register_forward_pre_hook(lambda layer, inputs: layer.weight.data.clamp_(-1, 1))
    weights = Weights(module)
    before = weights.now
    weights.begin_forward()
    assert weights.now is not before


def clamping(forward):
    """A forward that writes to weights first."""

    @functools.wraps(forward)
    def clamped(layer, x):
        layer.weight.data.clamp_(-0.1, 0.1)
        return forward(layer, x)

    return clamped


def test_a_layer_of_pytorch_whose_class_was_given_another_forward_is_watched(monkeypatch):
    """Cuts, and refused batches, had what it wrote to their weights."""
    monkeypatch.setattr(nn.Linear, "forward", clamping(nn.Linear.forward))
    weights = Weights(nn.Linear(2, 2))
    before = weights.now
    weights.begin_forward()
    assert weights.now is not before


def test_hooks_of_all_modules_that_come_later_are_watched_too():
    module = nn.Linear(2, 2)
    weights = Weights(module)
    for _ in range(2):
        pinned = weights.pin()
        was = [weight.clone() for weight in pinned]
        hook = nn.modules.module.register_module_forward_pre_hook(
            lambda layer, inputs: layer.weight.data.mul_(0.5)
        )
        try:
            weights.begin_forward()
            module(torch.ones(1, 2))
            weights.end_forward()
        finally:
            hook.remove()
        assert all(map(torch.equal, pinned, was))
        assert torch.equal(weights.now[0], was[0] / 2)
        weights.begin_forward()
        weights.end_forward()
