"""Running sums and what records say."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics

import akkordeon as ak
from akkordeon.errors import RecipeError
from akkordeon.metrics import BatchCount, BatchRefused, EpochDone, GateStatus, RoundDone, ScoreBoard, Tally


def test_accuracy_is_the_share_of_samples_whose_largest_output_is_the_target():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 6.0]])
    assert ak.accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 0.5
    images = torch.randn(2, 3, 4, 4)
    assert ak.accuracy(images, images.argmax(1)) == 1


def test_loss_and_functions_count_by_samples_so_that_a_small_last_batch_counts_little():
    board = ScoreBoard({"mean": lambda outputs, targets: outputs.mean()})
    board.add(1.0, torch.full((3,), 10.0), None, 3)
    board.add(5.0, torch.full((1,), 50.0), None, 1)
    assert board.samples == 4
    assert board.loss == 2.0
    assert board.scores() == {"mean": 20.0}


def test_before_the_first_batch_everything_is_nan():
    board = ScoreBoard({"accuracy": ak.accuracy, "metric": torchmetrics.MeanMetric()})
    assert math.isnan(board.loss)
    assert all(math.isnan(value) for value in board.scores().values())
    assert board.scores().keys() == {"accuracy", "metric"}


def test_a_metric_of_torchmetrics_is_copied_and_counts_all_batches_together():
    metric = torchmetrics.classification.MulticlassRecall(3, average="macro")
    outputs, targets = torch.randn(30, 3), torch.randint(3, (30,))
    metric.update(outputs[:3], targets[:3])  # the user's own state, to be left alone
    before = metric.compute()
    board = ScoreBoard({"recall": metric})
    for part in (slice(0, 7), slice(7, 30)):
        board.add(0.0, outputs[part], targets[part], 1)
    alone = torchmetrics.classification.MulticlassRecall(3, average="macro")
    assert board.scores()["recall"] == pytest.approx(alone(outputs, targets).item())
    assert metric.compute() == before


def test_a_score_that_is_no_number_is_refused_by_name():
    board = ScoreBoard({"each": lambda outputs, targets: outputs})
    with pytest.raises(RecipeError, match="the score 'each' must be one number, got a Tensor of shape"):
        board.add(0.0, torch.ones(3), None, 3)
    board = ScoreBoard({"many": torchmetrics.MetricCollection([torchmetrics.MeanMetric()])})
    board._streaming["many"].update(torch.ones(3))
    board.samples = 3
    with pytest.raises(RecipeError, match="the score 'many' must be one number, got a dict"):
        board.scores()


def test_a_tally_has_mean_and_maximum():
    tally = Tally()
    assert (tally.mean, tally.largest) == (0.0, 0)
    for number in (1, 4, 1):
        tally.add(number)
    assert (tally.count, tally.mean, tally.largest) == (3, 2.0, 4)


def test_counts_of_batches_add_up():
    total = BatchCount(5, 3, 1, 1) + BatchCount(2, 2, 0, 0)
    assert total.as_tuple() == (7, 5, 1, 1)


def test_a_gates_status_knows_mean_and_maximum_of_its_staleness():
    def status(staleness):
        return GateStatus(0, "gate/0", "gate/0", 0, 0, 0, 0, staleness, {})

    assert (status({}).staleness_mean, status({}).staleness_max) == (0.0, 0)
    assert (status({0: 3, 4: 1}).staleness_mean, status({0: 3, 4: 1}).staleness_max) == (1.0, 4)


def test_rates_are_per_second_and_infinite_where_no_time_passed():
    assert EpochDone("t", 1, 0.0, {}, 10, 4.0, 0.0, 0).samples_per_s == 2.5
    assert EpochDone("t", 1, 0.0, {}, 10, 0.0, 0.0, 0).samples_per_s == math.inf
    assert RoundDone("v", "validate", 1, 0.0, {}, 10, 4.0, 0).samples_per_s == 2.5
    assert RoundDone("v", "validate", 1, 0.0, {}, 10, 0.0, 0).samples_per_s == math.inf


def test_a_refusal_is_told_in_a_sentence():
    assert str(BatchRefused("tdp", 3, "gate/1", "form", "it is red")) == (
        "gate/1 refused batch 3 of tdp: it is red"
    )
    assert str(BatchRefused("tdp", 3, "tdp", "not_finite", "its loss is nan")) == (
        "tdp refused its own batch 3: its loss is nan"
    )
