"""A gate that compiles its module's forward: forward/compiled.py."""

from __future__ import annotations

import pickle

import pytest
import torch
from tests.support.harness import WAIT_S, batches_of, same_bits, sgd, small_network
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError

pytestmark = [  # what PyTorch's compiler says of itself
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
]

AS_TRACED = {"backend": "eager"}
"""What was traced runs as it is, which takes no compiler, and keeps the bits."""


def trained(network, workers=1, in_flight=3):
    with ak.run(network, ak.Threads(workers)) as session:
        session.attach(ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_updates=4))
        training = session.attach(ak.Sentinel.train(batches_of(9), F.cross_entropy, in_flight=in_flight))
        session.wait(timeout=10 * WAIT_S)
        assert training.batches.trained == 9
        return session.module()


def seeded(**settings):
    torch.manual_seed(0)
    network = small_network().replacing(**settings)
    torch.manual_seed(1)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"accumulate": 3}])
def test_it_has_the_weights_of_one_that_does_not_and_their_names(settings):
    assert same_bits(trained(seeded(compile=AS_TRACED, **settings)), trained(seeded(**settings)))


@pytest.mark.slow
def test_several_workers_compile_several_gates():
    assert same_bits(trained(seeded(compile=AS_TRACED), 2, 1), trained(seeded(), 2, 1))


@pytest.mark.slow
def test_pytorch_s_own_compiler_comes_to_nearly_the_same():
    ours, plain = trained(seeded(compile=True)).state_dict(), trained(seeded()).state_dict()
    assert list(ours) == list(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor)


def test_such_a_recipe_travels_to_a_cluster():
    gate = pickle.loads(pickle.dumps(ak.Gate(nn.Linear(6, 4), sgd, compile=AS_TRACED)))
    assert gate.compile == AS_TRACED


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.two(self.one(x))


def test_a_gate_that_was_cut_by_an_example_is_refused_in_a_sentence():
    with pytest.raises(
        RecipeError, match="gate 0 cannot have compile: it was cut from a forward by an example"
    ):
        ak.Network.from_module(Residual(), 2, sgd, example=torch.randn(3, 6), compile=True)
    with pytest.raises(
        RecipeError, match=r"compile is True, False or arguments of torch\.compile, got 'max'"
    ):
        ak.Gate(nn.Linear(6, 4), sgd, compile="max")
