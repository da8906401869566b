"""What our classifier and regressor of river have in common: features, gates, copies."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from river import base
from torch import Tensor, nn

from akkordeon.core.checks import require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.session.river.features import Features, Row, inputs_of
from akkordeon.session.streams.live_row import LiveRow

__all__ = ["NetworkEstimator"]


class NetworkEstimator(base.Estimator):
    """A network that learns from dicts of features, in the thread that calls.

    Args:
        network: the recipe; its first gate takes (N, features).
        loss: from (outputs, y) to one number.
        seed: of what is random in the gates.

    Raises:
        RecipeError: no network.
    """

    def __init__(self, network: Network, loss: Loss, seed: int) -> None:
        if not isinstance(network, Network):
            raise RecipeError(f"a model of river's is made of a Network, got {type(network).__name__}")
        require_whole("seed", seed, 0)
        self.network = network
        self.loss = loss
        self.seed = seed
        self._features = Features(inputs_of(network))
        self._gates = LiveRow(network, seed)

    @abstractmethod
    def learn_many(self, X: Any, y: Any) -> None:  # noqa: N803 - river's name
        """Learn from a mini-batch, in one update of each gate."""

    def learn_one(self, x: Row, y: Any) -> None:
        """Learn from one example; see :meth:`learn_many`."""
        self.learn_many([x], [y])

    def module(self) -> nn.Module:
        """The network as a plain module with the weights that it has now."""
        return self._gates.module()

    def _outputs(self, x: Tensor) -> Tensor:
        """(N, …) what the network gives for (N, features)."""
        outputs = self._gates.predict(x)
        if not isinstance(outputs, Tensor):
            raise RecipeError(f"a model of river's gives one tensor, got a {type(outputs).__name__}")
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        """Gates are kept as what others can go on from."""
        state = {name: value for name, value in vars(self).items() if name != "_gates"}
        return state | {"states": self._gates.states(), "batches": self._gates.batches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = dict(state)
        states, batches = kept.pop("states"), kept.pop("batches")
        vars(self).update(kept)
        self._gates = LiveRow(self.network, self.seed, states, batches)
