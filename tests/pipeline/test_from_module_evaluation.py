"""Modules that call other parts in evaluation mode than in training: the last gate may have all of them."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.pipeline.test_from_module import adamw, assert_same, features, plainly
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import RecipeError

WIDTH = 8


class Two(nn.Module):
    """Three layers, and what is between them differs from test to test."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.side, self.probabilities = nn.Linear(WIDTH, 3), nn.Softmax(dim=1)


class HelpedInTraining(Two):
    """A second head helps in training alone, as those of GoogLeNet do."""

    def forward(self, x):
        h = self.b(self.a(x).relu())
        side = self.side(h) if self.training else None
        y = self.head(h.relu())
        return y if side is None else y + 0.3 * side


class GivesProbabilities(Two):
    """It gives logits in training, and probabilities in evaluation mode."""

    def forward(self, x):
        y = self.head(self.b(self.a(x).relu()).relu())
        return y + self.side(x) if self.training else self.probabilities(y)


@pytest.mark.parametrize("make", [HelpedInTraining, GivesProbabilities])
@pytest.mark.parametrize("cut_before", [[], ["b"]], ids=["one gate", "two gates"])
def test_the_last_gate_may_call_other_parts_in_evaluation(make, cut_before):
    """It was refused, in one gate too, with the advice to put what decides into one gate."""
    model, batches = make(), features(WIDTH)
    gates = None if cut_before else 1
    network = ak.Network.from_module(model, gates, adamw, example=batches[0][0], cut_before=cut_before)
    expected = plainly(model, batches)
    with ak.run(network, "simulator") as session:
        session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1)).wait(timeout=60)
        predicted = session.predict(batches[0][0])
        assert_same(session.module(), expected)
    assert torch.equal(predicted, copy.deepcopy(expected).eval()(batches[0][0]))


def test_a_cut_after_they_part_is_refused_with_what_to_do():
    """Both modes were spoken of as one, and nothing said was of use."""
    sentence = (
        r"in evaluation mode the module calls 'head' where in training it called 'side'; .* one order of "
        r"calls up to the last gate: .* \(cut_before\)"
    )
    with pytest.raises(RecipeError, match=sentence):
        ak.Network.from_module(
            HelpedInTraining(), optimizer=adamw, example=torch.randn(5, WIDTH), cut_before=["head"]
        )


class Decides(Two):
    """What it calls depends on the values of a batch."""

    def forward(self, x):
        h = self.b(self.a(x).relu())
        return self.head(h) if x[0, 0] > 0 else self.side(h)


def test_one_gate_may_call_other_parts_for_other_batches():
    model, batches = Decides(), features(WIDTH)
    for number, (x, _) in enumerate(batches):
        x[0, 0] = 1 - 2 * (number % 2)
    network = ak.Network.from_module(model, 1, adamw, example=batches[0][0])
    with ak.run(network, "simulator") as session:
        trainer = session.attach(ak.Sentinel.train(batches, F.cross_entropy, in_flight=1))
        trainer.wait(timeout=60)
        assert trainer.batches.refused == 0
        assert_same(session.module(), plainly(model, batches))
