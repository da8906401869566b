"""Bugs of gates and trainers, each with its story."""

from __future__ import annotations

import pytest
import torch
from tests.harness import SIZE, WAIT_S, batches_of, sgd, small_network
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import akkordeon as ak
from akkordeon.errors import RecipeError, SentinelFailedError
from akkordeon.gate import Gate, GateActor
from akkordeon.messages import Backward, Batch, Forward
from akkordeon.stage import Place


class Checkpointed(nn.Module):
    """Keeps no activations: it runs again when the backward comes."""

    def __init__(self, net: nn.Module, again: bool) -> None:
        super().__init__()
        self.net, self.again = net, again

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False) if self.again else self.net(x)


@pytest.mark.parametrize("between", [nn.BatchNorm1d(7), ak.nn.Dropout(0.5)])
def test_a_checkpointed_module_runs_again_on_the_weights_and_masks_of_its_forward(between):
    # Activation checkpointing computed the forward anew with whatever weights were installed by then:
    # with two batches in flight the second gradient was silently one of a function that never was.
    net = nn.Sequential(nn.Linear(6, 7), between, nn.Tanh(), nn.Linear(7, 4))
    x, g = torch.randn(2, SIZE, 6), torch.randn(2, SIZE, 4)

    def weights(again: bool):
        gate = GateActor(Gate(Checkpointed(net, again), sgd), Place("gate/0", 0, previous="before"))
        for i in range(2):
            list(gate.receive(Forward(Batch("s", i), x[i]), 0.0))
        for i in range(2):
            list(gate.receive(Backward(Batch("s", i), g[i]), 0.0))
        return gate.weights.now

    for plain, checkpointed in zip(weights(False), weights(True), strict=True):
        assert torch.equal(plain, checkpointed)


class InPlaceInEvaluation(nn.Module):
    def forward(self, x):
        return F.relu(x, inplace=not self.training)


def test_a_module_in_place_in_evaluation_alone_leaves_the_inputs_of_predict_as_they_are():
    # The gate had learned from training that this module leaves its input alone.
    network = ak.Network([ak.Gate(InPlaceInEvaluation()), ak.Gate(nn.Linear(6, 4), sgd)])
    x = torch.randn(SIZE, 6)
    before = x.clone()
    with ak.run(network) as session:
        session.attach(ak.Sentinel.train(batches_of(3), F.cross_entropy)).wait(WAIT_S)
        for _ in range(2):
            session.predict(x, timeout=WAIT_S)
    assert torch.equal(x, before)


def test_a_score_that_works_in_place_changes_nothing():
    # It wrote into the outputs that the last gate kept for its backward: that gate was blamed.
    def score(outputs, targets):
        return outputs.clamp_(0, 0).sum()

    network = ak.Network([ak.Gate(nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()), sgd)])
    with ak.run(network) as session:
        trainer = session.attach(
            ak.Sentinel.train(batches_of(20), F.cross_entropy, scores={"score": score}, in_flight=3)
        )
        assert trainer.wait(WAIT_S).batches.trained == 20


def test_lazy_parameters_are_refused_with_the_recipe():
    # They made a gate that refused every batch, and a sentinel that ended without a word.
    with pytest.raises(RecipeError, match="lazy parameters"):
        ak.Gate(nn.LazyLinear(4), sgd)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sentinel_whose_few_batches_were_all_refused_fails(workers):
    # If the last refusal came before the end of the source was known, it ended as if all were well.
    nan = [(torch.full((SIZE, 6), torch.nan), torch.zeros(SIZE, dtype=torch.int64))] * 3
    with ak.run(small_network(), engine=ak.Threads(workers)) as session:
        trainer = session.attach(ak.Sentinel.train(nan, F.cross_entropy))
        with pytest.raises(SentinelFailedError, match="all 3 of its batches were refused"):
            trainer.wait(WAIT_S)


def test_clipping_sparse_gradients_is_refused_in_a_sentence():
    # Torch answered with a page about missing kernels.
    gate = ak.Gate(nn.EmbeddingBag(9, 4, sparse=True), lambda p: torch.optim.SGD(p, lr=0.1), clip_norm=1.0)
    batches = [(torch.randint(9, (SIZE, 3)), torch.randint(4, (SIZE,))) for _ in range(3)]
    with ak.run(ak.Network([gate])) as session:
        trainer = session.attach(ak.Sentinel.train(batches, F.cross_entropy))
        with pytest.raises(ak.AkkordeonError, match="clip_norm needs dense gradients"):
            trainer.wait(WAIT_S)
