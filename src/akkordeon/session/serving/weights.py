"""The weights that are served: a plain module of one cut, with its version, and another one ever so often.

A module is never written to once it is served; whoever has taken it computes with weights of one version,
whatever the gates do meanwhile.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from akkordeon.core.errors import AkkordeonError, explain
from akkordeon.core.payload import Payload
from akkordeon.pipeline.forward.output import output_of
from akkordeon.pipeline.splitting.calling import call

__all__ = ["Refresher", "ServedWeights", "WeightSource"]

END_S = 5.0
"""How long the end waits for weights that are being fetched."""


@dataclass(frozen=True)
class ServedWeights:
    """A network with weights of one version.

    Attributes:
        module: in evaluation mode.
        version: updates behind the weights; larger with every newer set of them.
        taken_s: when they were the network's, by ``time.monotonic()``.
    """

    module: nn.Module
    version: int
    taken_s: float

    def outputs(self, x: Payload) -> Payload:
        """What the network gives for a batch."""
        with torch.no_grad():
            return output_of(call(self.module, x), Tensor.detach)


class WeightSource(Protocol):
    """Where weights come from."""

    def fetch(self, before: ServedWeights | None) -> ServedWeights:
        """Those there are now; ``before``: the latest that were fetched.

        Raises:
            AkkordeonError: they cannot be had.
        """

    def batches_trained(self) -> int | None:
        """How many batches all sentinels have trained; None where nobody knows."""


class Refresher:
    """Has the latest weights, and fetches them on a thread of its own.

    Args:
        source: of the weights.
        every_s: seconds between two fetches.

    Attributes:
        latest: weights, which are replaced as a whole.
        failure: why there are none newer, in a sentence; None where there are.

    Raises:
        AkkordeonError: there are no weights to begin with.
    """

    def __init__(self, source: WeightSource, every_s: float) -> None:
        self._source = source
        self._every_s = every_s
        self.latest = source.fetch(None)
        self.failure: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="akkordeon weights", daemon=True)
        self._thread.start()

    @property
    def age_s(self) -> float:
        """Since when the network may have others."""
        return time.monotonic() - self.latest.taken_s

    def batches_trained(self) -> int | None:
        """How many batches were trained so far; None where nobody knows."""
        try:
            return self._source.batches_trained()
        except AkkordeonError:
            return None

    def close(self) -> None:
        """Fetch no more."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_S)

    def _run(self) -> None:
        torch.set_num_threads(1)
        while not self._ended.wait(self._every_s):
            try:
                self.latest = self._source.fetch(self.latest)
                self.failure = None
            except Exception as error:  # of a user's module too, which is copied
                self.failure = explain(error)
