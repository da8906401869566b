"""A position that is too large for one shard: a front that the row sees, and parts that hold the weights.

    replica/0/gate/1 ──Push──▶ shard/1      the front: what the row sees
                     ──Push──▶ shard/1.1    a part ──Parameters, with every cut──▶ shard/1
                     ──Push──▶ shard/1.2    a part ──Parameters, with every cut──▶ shard/1

A part is a shard of some of the position's weights, with an optimizer, versions and w_bak of its own. The
front has all that is one for the position: the module that validators work on, buffers, the warm start. It
is a shard without weights: what replicas push to it counts updates and brings buffers. Both are shards like
any other but for what they do at a cut: that is their role, which the shard is given.

A cut visits the parts on its way to the front. Each pins its weights and sends them to the front, which
holds the cut back until it has those of all parts. Every part and the front see the cuts in one and the same
order, as all cuts go the same way, so the next weights of each part are those of the next cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from akkordeon.core.actor import Effect, Send
from akkordeon.core.messages import Cut
from akkordeon.core.payload import nbytes
from akkordeon.core.shard_messages import Parameters
from akkordeon.downpour.shard import Handlers, ShardActor, WeightIndices

__all__ = ["FrontRole", "PartRole", "divide_weights", "part_of"]


def divide_weights(module: nn.Module, max_bytes: int) -> list[WeightIndices]:
    """The trainable parameters divided among parts in their order; none is cut.

    Args:
        module: whose they are.
        max_bytes: that a part weighs at most, unless a single parameter weighs more.
    """
    parts: list[WeightIndices] = []
    weight = 0
    for i, parameter in enumerate(module.parameters()):
        if not parameter.requires_grad:
            continue
        weight += nbytes(parameter)
        if not parts or weight > max_bytes:
            parts.append(())
            weight = nbytes(parameter)
        parts[-1] += (i,)
    return parts


def part_of(module: nn.Module, indices: WeightIndices) -> nn.Module:
    """A module that has some of another's parameters under their names there, and computes nothing."""
    named = list(module.named_parameters())
    part = nn.Module()
    part._parameters.update(named[i] for i in indices)  # not registered: a name with a dot would be refused
    return part


class PartRole:
    """A part sends the front its weights ahead of every cut.

    Args:
        front: address of the front of its position.
        shard: the part.
    """

    def __init__(self, front: str, shard: ShardActor) -> None:
        self.handlers: Handlers = {Cut: self._cut}
        self._front = front
        self._shard = shard
        self._sent = shard.version  # the version that the front has

    def _cut(self, message: Cut) -> Iterator[Effect]:
        yield Send(self._front, Parameters(self._shard.address, self._shard.version, self._news()))
        yield from self._shard.pin(message)

    def _news(self) -> tuple[Tensor, ...]:
        """The weights, if the front does not have them yet."""
        if self._sent == self._shard.version:
            return ()
        self._sent = self._shard.version
        return tuple(weight.detach() for weight in self._shard.weights.pin())


class FrontRole:
    """A front holds every cut back until it has the weights of all parts, and pins those.

    Args:
        parts: which weights each part holds, by its address.
        shard: the front.
    """

    def __init__(self, parts: Mapping[str, WeightIndices], shard: ShardActor) -> None:
        self.handlers: Handlers = {Cut: self._cut, Parameters: self._parameters}
        self._parts = parts
        self._shard = shard
        self._cuts: deque[Cut] = deque()  # that wait for weights
        self._came: dict[str, deque[Parameters]] = {part: deque() for part in parts}

    def _cut(self, message: Cut) -> Iterator[Effect]:
        self._cuts.append(message)
        return self._pin()

    def _parameters(self, message: Parameters) -> Iterator[Effect]:
        self._came[message.shard].append(message)
        return self._pin()

    def _pin(self) -> Iterator[Effect]:
        """Pin the weights of all parts for every cut that has them, and pass it on."""
        shard = self._shard
        while self._cuts and all(self._came.values()):
            for part, came in self._came.items():
                payload = came.popleft().payload
                if shard.device is not None:
                    payload = tuple(weight.to(shard.device) for weight in payload)
                if payload:
                    shard.weights.adopt(payload, self._parts[part])
            yield from shard.pin(self._cuts.popleft())
