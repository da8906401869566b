"""A network as a regressor of river's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from river import base
from torch.nn import functional as F

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.session.river.estimator import NetworkEstimator
from akkordeon.session.river.features import Row
from akkordeon.session.river.frames import pairs_of, rows_of, series_like

__all__ = ["Regressor"]


class Regressor(NetworkEstimator, base.MiniBatchRegressor):
    """A network whose last gate gives one number.

    Args:
        network: the recipe, from (N, features) to (N, 1).
        loss: from (outputs, y) to one number, both (N, 1); the mean squared error if not given.
        seed: of what is random in the gates.

    Raises:
        RecipeError: no network.
    """

    def __init__(self, network: Network, loss: Loss | None = None, seed: int = 0) -> None:
        super().__init__(network, loss or F.mse_loss, seed)

    def learn_many(self, X: Any, y: Any) -> None:  # noqa: N803 - river's name
        """Learn from a mini-batch, in one update of each gate.

        Args:
            X: a list of dicts, or a data frame.
            y: a list of numbers, or a series.

        Raises:
            DataError: there are more features than the network has inputs for, or a label is no number, or
                there are not as many labels as rows.
        """
        rows, labels = pairs_of(X, y)
        if rows:
            targets = torch.tensor([[_number(label)] for label in labels])
            self._gates.learn(self._features.tensor(rows, learn=True), targets, self.loss)

    def predict_one(self, x: Row) -> float:
        """What the network gives; 0 before it has learned from anything."""
        return self._values([x])[0]

    def predict_many(self, X: Any) -> Any:  # noqa: N803 - river's name
        """As :meth:`predict_one`, for each row; in a list or a series."""
        return series_like(X, self._values(rows_of(X)))

    def _values(self, rows: Sequence[Row]) -> list[float]:
        if not (self._gates.batches and rows):
            return [0.0 for _ in rows]
        outputs = self._outputs(self._features.tensor(rows, learn=False))
        if outputs.shape != (len(rows), 1):
            raise RecipeError(f"a regressor gives (N, 1), got {tuple(outputs.shape)} for {len(rows)} rows")
        values: list[float] = outputs[:, 0].tolist()
        return values


def _number(label: Any) -> float:
    try:
        return float(label)
    except (TypeError, ValueError):
        raise DataError(f"the label {label!r} is no number, which a regressor learns from") from None
