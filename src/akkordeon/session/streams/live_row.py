"""A row of gates at work in the thread that calls: for those who learn and predict one after the other.

The messages are those of a sentinel with one batch in flight; no engine carries them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from akkordeon.core.actor import Send
from akkordeon.core.errors import DataError
from akkordeon.core.messages import (
    Backward,
    Batch,
    Cut,
    CutId,
    Evaluate,
    Export,
    Exported,
    Forget,
    Forward,
    Message,
    Probe,
    Refused,
    Release,
)
from akkordeon.core.payload import Payload, samples
from akkordeon.core.plain_state import StageState
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.stage import Stage
from akkordeon.sentinels.loss import BatchLoss, Loss
from akkordeon.sentinels.streaming.predicting import PREDICTIONS

__all__ = ["ME", "LiveRow", "shadow_of"]

ME = "caller"
"""The address of who asks."""


class LiveRow:
    """Gates that learn and predict when they are asked to, one batch at a time.

    Args:
        network: the recipe; it is copied.
        seed: of what is random in the gates.
        states: what the gates go on from, by address; the recipe's weights if not given.
        batches: that they were given before.
    """

    def __init__(
        self,
        network: Network,
        seed: int = 0,
        states: Mapping[str, StageState] | None = None,
        batches: int = 0,
    ) -> None:
        self._row = network.row()
        self._gates = {
            spawn.address: cast(Stage, spawn.make()) for spawn in network.spawns(seed, states=states)
        }
        self._network = network
        self._cuts = 0
        self.batches = batches

    def learn(self, x: Payload, y: Any, loss: Loss) -> float:
        """Have all gates learn from a batch; its loss, before that.

        Raises:
            DataError: a gate refused it.
        """
        loss_now, backward = self._turned(x, y, loss)
        self._asked(Backward, self._row[-1], backward)
        self._tell_all(Probe(0))  # gates on a device refuse now what they else would with the next batch
        return loss_now

    def predict(self, x: Payload) -> Payload:
        """The outputs of the gates as they are.

        Raises:
            DataError: a gate refused it.
        """
        cut = self._pin()
        try:
            asked = Evaluate(Batch(ME, PREDICTIONS + cut.number), x, cut)
            outputs: Payload = self._asked(Evaluate, self._row[0], asked).payload
            return outputs
        finally:
            self._tell_all(Release(cut))

    def states(self) -> dict[str, StageState]:
        """What another row can go on from."""
        cut = self._pin(whole=True)
        try:
            return {gate: _state_of(self._asked(Exported, gate, Export(cut))) for gate in self._row}
        finally:
            self._tell_all(Release(cut))

    def module(self) -> nn.Module:
        """The network as a plain module with the weights that it has now."""
        return self._network.module({gate: state.tensors for gate, state in self.states().items()})

    def _turned(self, x: Payload, y: Any, loss: Loss) -> tuple[float, Backward]:
        """Send a batch through the row; its loss, and what the last gate is to be told then."""
        batch = Batch(ME, self.batches)
        self.batches += 1
        outputs = self._asked(Forward, self._row[0], Forward(batch, x, samples(x))).payload
        try:
            judged = BatchLoss(outputs, y, loss)
            return float(judged.value), Backward(batch, judged.gradient())
        except BaseException:
            self._tell_all(Forget(*batch))
            raise

    def _pin(self, whole: bool = False) -> CutId:
        cut = CutId(ME, self._cuts)
        self._cuts += 1
        self._asked(Cut, self._row[-1], Cut(cut, whole=whole))
        return cut

    def _asked(self, kind: type, to: str, message: Message) -> Any:
        """What comes back for a message."""
        for answer in self._answers(to, message):
            if isinstance(answer, kind):
                return answer
        raise AssertionError(f"{to} has answered {message} with nothing")

    def _tell_all(self, message: Message) -> None:
        for gate in self._row:
            self._answers(gate, message)

    def _answers(self, to: str, message: Message) -> list[Message]:
        """Carry a message and all that follow from it, and keep what comes back.

        Raises:
            DataError: a gate refused it.
        """
        waiting, answers = deque([Send(to, message)]), []
        while waiting:
            to, message = waiting.popleft()
            if to != ME:
                waiting.extend(self._sent(to, message))
            elif isinstance(message, Refused):
                for gate in self._row:
                    for about in (Forget(*message.batch), Probe(0)):
                        self._sent(gate, about)  # others may refuse it, too
                raise DataError(f"{message.gate} refused it: {message.reason}") from message.error
            else:
                answers.append(message)
        return answers

    def _sent(self, to: str, message: Message) -> list[Send]:
        """What a gate sends when it is given a message."""
        with torch.no_grad():
            effects = list(self._gates[to].receive(message, 0.0))
        return [effect for effect in effects if isinstance(effect, Send)]


def _state_of(exported: Exported) -> StageState:
    if isinstance(exported.learner, Exception):
        raise exported.learner
    tensors = {name: tensor.clone() for name, tensor in exported.state.items()}
    return StageState(0, tensors, exported.learner)


def shadow_of(network: Network | Downpour, seed: int) -> Callable[[], LiveRow] | None:
    """How to make a row beside that of a network; None for replicas, whose rows learn from no streams."""
    return partial(LiveRow, network, seed) if isinstance(network, Network) else None
