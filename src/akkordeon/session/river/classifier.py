"""A network as a classifier of river's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from river import base
from river.base.typing import ClfTarget
from torch import Tensor
from torch.nn import functional as F

from akkordeon.core.errors import DataError
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.session.river.estimator import NetworkEstimator
from akkordeon.session.river.features import Row
from akkordeon.session.river.frames import frame_like, pairs_of, rows_of, series_like

__all__ = ["Classifier"]


class Classifier(NetworkEstimator, base.MiniBatchClassifier):
    """A network whose last gate gives a number for each class. Classes are found on the way.

    Args:
        network: the recipe, from (N, features) to (N, classes) logits.
        loss: from (logits, class numbers) to one number; the cross-entropy if not given.
        seed: of what is random in the gates.

    Raises:
        RecipeError: no network.
    """

    def __init__(self, network: Network, loss: Loss | None = None, seed: int = 0) -> None:
        super().__init__(network, loss or F.cross_entropy, seed)
        self._classes: dict[ClfTarget, int] = {}
        self._outputs_there_are: int | None = None

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_many(self, X: Any, y: Any) -> None:  # noqa: N803 - river's name
        """Learn from a mini-batch, in one update of each gate.

        Args:
            X: a list of dicts, or a data frame.
            y: a list of labels, or a series.

        Raises:
            DataError: there are more features or classes than the network has inputs and outputs for, or not
                as many labels as rows.
        """
        rows, labels = pairs_of(X, y)
        if rows:
            x = self._features.tensor(rows, learn=True)
            self._gates.learn(x, self._numbers_of(labels, x), self.loss)

    def predict_proba_one(self, x: Row, **kwargs: Any) -> dict[ClfTarget, float]:
        """The probability of each class that was seen so far; before the first there is none."""
        probabilities: dict[ClfTarget, float] = self.predict_proba_many([x])[0]
        return probabilities

    def predict_proba_many(self, X: Any) -> Any:  # noqa: N803 - river's name
        """As :meth:`predict_proba_one`: a list of dicts of such, and a data frame of a data frame."""
        return frame_like(X, self._probabilities(rows_of(X)))

    def predict_many(self, X: Any) -> Any:  # noqa: N803 - river's name
        """The likeliest class for each row, None before the first was seen; in a list or a series."""
        likeliest = [max(row, key=row.__getitem__, default=None) for row in self._probabilities(rows_of(X))]
        return series_like(X, likeliest)

    def _probabilities(self, rows: Sequence[Row]) -> list[Mapping[ClfTarget, float]]:
        if not (self._classes and rows):
            return [{} for _ in rows]
        logits = self._outputs(self._features.tensor(rows, learn=False))[:, : len(self._classes)]
        shares = logits.double().softmax(1).tolist()
        return [dict(zip(self._classes, row, strict=True)) for row in shares]

    def _numbers_of(self, labels: Sequence[ClfTarget], x: Tensor) -> Tensor:
        """(N,) numbers of classes; new ones get theirs."""
        new = [label for label in dict.fromkeys(labels) if label not in self._classes]
        if self._outputs_there_are is None:
            self._outputs_there_are = self._outputs(x).shape[1]
        room = self._outputs_there_are - len(self._classes)
        if len(new) > room:
            raise DataError(
                f"the class {new[room]!r} is one too many for the {self._outputs_there_are} outputs of the "
                "network; make its last gate wider"
            )
        for label in new:
            self._classes[label] = len(self._classes)
        return torch.tensor([self._classes[label] for label in labels])
