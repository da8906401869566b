"""A task: a network, what it learns from, and how that is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from akkordeon.core.checks import require_whole
from akkordeon.core.errors import DataError, TaskError
from akkordeon.core.payload import Payload
from akkordeon.data.batches import Batches
from akkordeon.data.sources import as_batches
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.sentinels.scores import Score

__all__ = ["Task", "kind_of"]


@dataclass(frozen=True)
class Task:
    """A network, what it learns from, and how that is judged.

    Args:
        network: the recipe.
        train: what it learns from: a pair of tensors (x, y), :class:`Batches`, a ``DataLoader``, or any
            iterable of batches.
        validate: what it is judged by, likewise.
        loss: from (outputs, y) to one number.
        scores: what else to report, by name.
        epochs: how often to read ``train`` through, where nobody says otherwise.
        batch_size: for pairs of tensors, where nobody says otherwise.
        in_flight: batches each training sentinel has under way, where nobody says otherwise. More than one
            makes gradients stale: measure that they do not train a worse network.

    Raises:
        TaskError: something is not what it should be.
    """

    network: Network
    train: Any
    validate: Any
    loss: Loss
    scores: Mapping[str, Score] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 128
    in_flight: int = 1

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if not isinstance(self.network, Network):
            raise TaskError(f"a task's network is a Network, got {kind_of(self.network)}")
        if not callable(self.loss):
            raise TaskError(f"a task's loss is a function of (outputs, y), got {kind_of(self.loss)}")
        if not isinstance(self.scores, Mapping):
            raise TaskError(f"a task's scores are a dict of functions by name, got {kind_of(self.scores)}")
        for what in ("epochs", "batch_size", "in_flight"):
            require_whole(f"a task's {what}", getattr(self, what), error=TaskError)
        for what in ("train", "validate"):
            try:
                as_batches(getattr(self, what), self.batch_size)
            except DataError as error:
                raise TaskError(f"a task cannot {what} with this: {error}") from error

    def train_batches(self, batch_size: int | None = None, seed: int = 0) -> Any:
        """The training data in batches; a pair of tensors is shuffled anew in every epoch.

        Args:
            batch_size: the task's own if not given.
            seed: of the shuffling.

        Raises:
            TaskError: a batch size was asked for, but the task brings batches that cannot be cut anew.
        """
        batches = as_batches(self.train, batch_size or self.batch_size)
        if isinstance(self.train, tuple) and isinstance(batches, Batches):  # a pair of tensors
            return replace(batches, shuffle=True, seed=seed)
        if batch_size is None:
            return self.train
        if isinstance(self.train, Batches):
            return self.train.with_batch_size(batch_size)
        raise TaskError(
            f"the task's training data is a {kind_of(self.train)} with batches of its own; "
            "the batch size is set there"
        )

    def example(self, batch_size: int | None = None) -> Payload:
        """The inputs of a batch of the training data, which can be read again.

        Args:
            batch_size: the task's own if not given.

        Raises:
            TaskError: it can be read once only, or there is none.
        """
        source = as_batches(self.train_batches(batch_size), batch_size or self.batch_size)
        batches = iter(source)
        if batches is source:
            raise TaskError("the task's training data can be read once only, so no batch of it can be tried")
        for x, _ in batches:
            inputs: Payload = x
            return inputs
        raise TaskError("the task's training data has no batches")


def kind_of(thing: object) -> str:
    """The type of a thing, for a sentence about it."""
    return "None" if thing is None else type(thing).__name__
