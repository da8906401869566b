"""DropConnect and a dropout whose masks depend on a key and on nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError

KEY = (0, "gate/1", "sentinel/tdp#1", 7, 0)
MODULES = {"dropout": lambda: ak.nn.Dropout(0.3), "dropconnect": lambda: ak.nn.DropConnectLinear(6, 5, 0.3)}
X = torch.ones(4, 6)


def drawn(module, key=KEY):
    module.reseed(key)
    return module(X)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
class TestBoth:
    def test_equal_keys_give_equal_masks_and_different_keys_different_ones(self, make):
        module = make()
        first = drawn(module)
        assert torch.equal(drawn(module), first)
        for i in range(len(KEY)):
            other = [*KEY]
            other[i] = "else"
            assert not torch.equal(drawn(module, tuple(other)), first)

    def test_without_a_new_key_every_mask_is_another(self, make):
        module = make()
        assert not torch.equal(module(X), module(X))

    def test_the_generator_of_the_process_is_neither_read_nor_moved(self, make):
        module = make()
        first, state = drawn(module), torch.get_rng_state()
        torch.rand(3)
        assert torch.equal(drawn(module), first)
        torch.set_rng_state(state)
        drawn(module)
        assert torch.equal(torch.get_rng_state(), state)

    def test_evaluation_has_no_mask(self, make):
        module = make().eval()
        expected = X if isinstance(module, ak.nn.Dropout) else F.linear(X, module.weight, module.bias)
        assert torch.equal(module(X), expected)

    def test_probability_zero_is_no_mask_either(self, make):
        module = make()
        module.p = 0.0
        assert torch.equal(module(X), copy.deepcopy(module).eval()(X))

    def test_copies_and_pickles_draw_the_same_after_the_same_key(self, make):
        module = make()
        first = drawn(module)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(drawn(twin), first)
            assert torch.equal(drawn(module), first)

    def test_a_copy_made_after_seeding_starts_where_the_key_does(self, make):
        module = make()
        module.reseed(KEY)
        twin = copy.deepcopy(module)
        assert torch.equal(twin(X), module(X))

    def test_the_same_key_in_another_process_gives_the_same_seed(self, make):
        module = make()
        module.reseed(KEY)
        assert module._seed == 1605496345009573472  # blake2b of the key: hash() would differ by process


def test_dropout_keeps_the_mean_and_drops_its_share():
    y = ak.nn.Dropout(0.3)(torch.ones(200, 500))
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])


def test_dropconnect_drops_weights_and_biases_and_not_activations():
    module = ak.nn.DropConnectLinear(400, 300, 0.3)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.bias.fill_(1.0)
    module.reseed(KEY)
    columns, bias = module(torch.eye(400)), None
    module.reseed(KEY)
    bias = module(torch.zeros(1, 400))
    weight = columns - bias
    assert (weight.abs() < 1e-6).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert weight.mean().item() == pytest.approx(1, abs=0.01)
    assert 0 < (bias == 0).float().mean().item() < 0.6
    module.reseed(KEY)
    two = module(torch.ones(2, 400))
    assert torch.equal(two[0], two[1])  # one mask for the whole batch


def test_dropconnect_is_initialised_as_a_linear_layer_and_learns_through_its_mask():
    torch.manual_seed(3)
    module = ak.nn.DropConnectLinear(6, 5, 0.5)
    torch.manual_seed(3)
    linear = nn.Linear(6, 5)
    assert torch.equal(module.weight, linear.weight)
    assert torch.equal(module.bias, linear.bias)
    module(torch.ones(1, 6)).sum().backward()
    assert set(module.weight.grad.unique().tolist()) == {0.0, 2.0}


def test_it_can_do_without_a_bias():
    module = ak.nn.DropConnectLinear(6, 5, 0.5, bias=False)
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert module(X).shape == (4, 5)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_probability_out_of_range_is_refused(p):
    with pytest.raises(RecipeError, match=r"in \[0, 1\)"):
        ak.nn.Dropout(p)
    with pytest.raises(RecipeError, match=r"in \[0, 1\)"):
        ak.nn.DropConnectLinear(2, 2, p)


def test_they_print_what_they_are():
    assert repr(ak.nn.Dropout(0.25)) == "Dropout(p=0.25)"
    assert repr(ak.nn.DropConnectLinear(6, 5, 0.3)) == (
        "DropConnectLinear(in_features=6, out_features=5, p=0.3)"
    )


def test_within_a_key_every_call_has_a_mask_of_its_own_by_its_number():
    drop, marked = ak.nn.Dropout(0.5), [X, X, 2 * X, X]
    drop.reseed(KEY)
    masks = [drop(x) for x in marked]
    marks = drop.marks()
    assert len({str(mask) for mask in masks}) == 4
    drop.replay(KEY, marks)
    assert torch.equal(drop(2 * X), masks[2])
    assert all(torch.equal(drop(X), masks[n]) for n in (0, 1, 3))
    drop.reseed(KEY)
    assert torch.equal(drop(X), masks[0])


def test_a_module_called_once_needs_no_mark_and_gives_its_mask_as_often_as_asked():
    drop = ak.nn.Dropout(0.5)
    mask = drawn(drop)
    assert drop.marks() == ()
    drop.replay(KEY, ())
    assert all(torch.equal(drop(X), mask) for _ in range(3))
