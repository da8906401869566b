"""A position that is too large for one shard: a front that the row sees, and parts that hold the weights.

    replica/0/gate/1 ──Push──▶ shard/1      the front: what the row sees
                     ──Push──▶ shard/1.1    a part ──Parameters, with every cut──▶ shard/1
                     ──Push──▶ shard/1.2    a part ──Parameters, with every cut──▶ shard/1

A part is a shard of some of the position's weights, with an optimizer, versions and w_bak of its own. The
front has all that is one for the position: the module that validators work on, buffers, the warm start. It
is a shard without weights: what replicas push to it counts updates and brings buffers.

A cut visits the parts on its way to the front. Each pins its weights and sends them to the front, which
holds the cut back until it has those of all parts. Every part and the front see the cuts in one and the same
order, as all cuts go the same way, so the next weights of each part are those of the next cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from akkordeon.core.actor import Effect, Send
from akkordeon.core.messages import Cut, Parameters
from akkordeon.core.payload import nbytes
from akkordeon.downpour.shard import ParameterShard, ShardActor
from akkordeon.pipeline.stage import Place
from akkordeon.pipeline.weights import Snapshot

__all__ = ["FrontActor", "PartActor", "Places", "divided", "part_of"]

Places = tuple[int, ...]
"""Some of a module's parameters, by their places among all of them."""


def divided(module: nn.Module, max_bytes: int) -> list[Places]:
    """The trainable parameters dealt out to parts in their order; none is cut.

    Args:
        module: whose they are.
        max_bytes: that a part weighs at most, unless a single parameter weighs more.
    """
    parts: list[Places] = []
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


def part_of(module: nn.Module, places: Places) -> nn.Module:
    """A module that has some of another's parameters under their names there, and computes nothing."""
    named = list(module.named_parameters())
    part = nn.Module()
    part._parameters.update(named[i] for i in places)  # not registered: a name with a dot would be refused
    return part


class PartActor(ShardActor):
    """A shard of some of a position's weights.

    Args:
        shard: the recipe, of those weights alone.
        place: its place in the row.
        front: address of the front of its position.
    """

    def __init__(self, shard: ParameterShard, place: Place, front: str) -> None:
        super().__init__(shard, place)
        self._front = front
        self._shown = self.version  # the version that the front has

    def _cut(self, message: Cut) -> Iterator[Effect]:
        yield Send(self._front, Parameters(self.address, self.version, self._news()))
        yield from super()._cut(message)

    def _news(self) -> tuple[Tensor, ...]:
        """The weights, if the front does not have them yet."""
        if self._shown == self.version:
            return ()
        self._shown = self.version
        return tuple(weight.detach() for weight in self.weights.pin())


class FrontActor(ShardActor):
    """What a row sees of a position whose weights are on several shards.

    Args:
        shard: the recipe, of the whole module.
        place: its place in the row.
        parts: which weights each part holds, by its address.
    """

    def __init__(self, shard: ParameterShard, place: Place, parts: Mapping[str, Places]) -> None:
        super().__init__(shard, place)
        self.weights.trainable.clear()  # what can be lent and learned, the parts have
        self._parts = parts
        self._cuts: deque[Cut] = deque()  # that wait for weights
        self._came: dict[str, deque[Parameters]] = {part: deque() for part in parts}
        self._handlers[Parameters] = self._parameters

    def _cut(self, message: Cut) -> Iterator[Effect]:
        self._cuts.append(message)
        return self._pin()

    def _parameters(self, message: Parameters) -> Iterator[Effect]:
        self._came[message.shard].append(message)
        return self._pin()

    def _pin(self) -> Iterator[Effect]:
        """Pin the weights of all parts for every cut that has them, and pass it on."""
        while self._cuts and all(self._came.values()):
            for part, came in self._came.items():
                payload = came.popleft().payload
                if self.device is not None:
                    payload = tuple(weight.to(self.device) for weight in payload)
                if payload:
                    self.weights.adopt(payload, self._parts[part])
            yield from super()._cut(self._cuts.popleft())

    def _named(self, weights: Snapshot) -> Iterator[tuple[str, Tensor]]:
        """What no part has: of theirs, these are copies, and may be old ones."""
        theirs = {self.weights.names[i] for places in self._parts.values() for i in places}
        return (named for named in super()._named(weights) if named[0] not in theirs)
