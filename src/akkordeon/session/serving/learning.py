"""Examples that are posted, on their way to the stream that learns from them."""

from __future__ import annotations

import math
from typing import Any

from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.payload import Payload, all_finite, tensors
from akkordeon.core.streams.messages import Key
from akkordeon.sentinels.loss import BatchLoss
from akkordeon.sentinels.recipes import Streaming
from akkordeon.session.attachment import Attachment
from akkordeon.session.serving.bodies import targets_of
from akkordeon.session.serving.posts import Posts

__all__ = ["Learning", "key_of"]


class Learning:
    """Takes examples for a stream, if it can learn from them.

    A stream whose loss raises has failed. So each example is tried before: what the network gives for it has
    a loss with its targets.

    Args:
        stream: attached, and reading :class:`Posts`.

    Raises:
        RecipeError: it is something else.
    """

    def __init__(self, stream: Attachment) -> None:
        recipe = getattr(stream, "recipe", None)
        if not (isinstance(recipe, Streaming) and isinstance(recipe.batches, Posts)):
            raise RecipeError(
                "learn is a stream that reads what is posted, "
                f"session.attach(ak.Sentinel.stream(ak.Posts(), loss)), got {stream!r}"
            )
        self._stream = stream
        self._loss = recipe.loss
        self._posts = recipe.batches

    def check(self, x: Payload, y: Payload, outputs: Payload) -> None:
        """Refuse inputs that gates would refuse, and targets that the outputs have no finite loss with.

        Raises:
            DataError: inputs are not finite, or there is no such loss; or whatever the loss raises.
        """
        if not all_finite(tensors(x)):  # 1e400 is one in JSON, and a module may squash it
            raise DataError("the inputs of this example are not finite")
        judged = BatchLoss(outputs, y, self._loss)
        if not math.isfinite(float(judged.value)):
            raise DataError(f"the loss of this example is {judged.value}")
        judged.gradient()

    def targets(self, value: Any, rows: int) -> Payload:
        """Targets of what was posted, for so many rows.

        Raises:
            DataError: they are none.
        """
        return targets_of(value, rows, self._posts.target_dtype)

    @property
    def why_not(self) -> str | None:
        """Why nobody would learn from an example that comes now; None where somebody would."""
        if self._stream.ended:
            return "the stream that learns has ended"
        return None if self._posts.has_room else self._full

    def take(self, x: Payload, y: Payload, key: Key | None) -> str | None:
        """Have the stream learn from an example; gives the reason where it does not."""
        return self.why_not or (None if self._posts.put(x, y, key) else self._full)

    @property
    def _full(self) -> str:
        return f"{self._posts.waiting} examples wait to be learned from, and no more are taken now"

    @property
    def waiting(self) -> int:
        """Examples that wait to be learned from."""
        return self._posts.waiting


def key_of(value: Any) -> Key | None:
    """A key as JSON has it, or none.

    Raises:
        DataError: it is something else.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is None or isinstance(value, str) or is_whole:
        key: Key | None = value
        return key
    raise DataError(f"a key is a string or a whole number of at least 0, got {value!r}")
