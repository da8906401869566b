"""Scores, their means over an epoch or a round, and over windows in it."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics
from torch.nn.functional import mse_loss

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.sentinels.scores import ScoreBoard


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
    board = ScoreBoard({"each": torchmetrics.classification.MulticlassRecall(3, average=None)})
    board.add(0.0, torch.randn(4, 3), torch.randint(3, (4,)), 4)
    with pytest.raises(RecipeError, match="the score 'each' must be one number, got a Tensor of shape"):
        board.scores()


def test_the_metrics_of_a_collection_are_scores_each():
    metrics = [
        torchmetrics.classification.MulticlassRecall(3),
        torchmetrics.classification.MulticlassAUROC(3),
    ]
    board = ScoreBoard({"all": torchmetrics.MetricCollection(metrics)})
    board.add(0.0, torch.randn(40, 3).softmax(1), torch.randint(3, (40,)), 40)
    assert board.scores().keys() == {"all/MulticlassRecall", "all/MulticlassAUROC"}
    assert ak.Best("all/MulticlassRecall").is_better(0.5, 0.4)
    ak.Sentinel.validate(
        [],
        mse_loss,
        scores={"all": torchmetrics.MetricCollection(metrics)},
        best=ak.Best("all/MulticlassRecall"),
    )


class Kept:
    """A metric that keeps every output, as those for curves do; its score is how many there are."""

    def __init__(self):
        self.outputs = []

    def update(self, outputs, targets):
        self.outputs.append(outputs)

    def compute(self):
        return len(self.outputs)

    def reset(self):
        self.outputs = []


def test_windows_have_the_loss_and_scores_of_their_own_batches():
    board = ScoreBoard({"mean": lambda outputs, targets: outputs.mean(), "kept": Kept()})
    for value in (1.0, 3.0):
        board.add(value, torch.full((2,), 10 * value), None, 2)
    assert board.window() == (2.0, {"mean": 20.0, "kept": 2})
    board.add(8.0, torch.full((4,), 80.0), None, 4)
    assert board.window() == (8.0, {"mean": 80.0, "kept": 3})
    assert math.isnan(board.window()[0])
    assert (board.loss, board.scores()) == (5.0, {"mean": 50.0, "kept": 3})


def test_on_an_endless_epoch_metrics_keep_no_batch_beyond_a_window():
    board = ScoreBoard({"kept": Kept()}, endless=True)
    for _ in range(3):
        board.add(0.0, torch.ones(2), None, 2)
    assert board.scores() == {"kept": 3}
    assert board.window()[1] == {"kept": 3}
    board.add(0.0, torch.ones(2), None, 2)
    assert board._streaming["kept"].outputs == [pytest.approx(torch.ones(2))]
    assert board.scores() == {"kept": 2.5}, "the mean over the windows, by samples"
    board.window()
    assert board.scores() == {"kept": 2.5}
