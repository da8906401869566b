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
order, as all cuts go the same way; one that a part did not see whose place another took is never whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from akkordeon.core.actor import Effect, Send
from akkordeon.core.messages import Cut, CutId
from akkordeon.core.payload import nbytes
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.shard_messages import Parameters
from akkordeon.downpour.shard import Handlers, ShardActor, WeightIndices
from akkordeon.pipeline.stage import PINS_MAX

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
    vars(part)["weights_begin_with"] = getattr(module, "weights_begin_with", "")
    return part


class PartRole:
    """A part sends the front its weights ahead of every cut.

    Args:
        front: address of the front of its position.
        shard: the part.
    """

    def __init__(self, front: str, shard: ShardActor) -> None:
        self.handlers: Handlers = {Cut: self._cut, Restarted: self._restarted}
        self._front = front
        self._shard = shard
        self._sent = 0  # the version that the front has, which begins with the recipe's weights

    def _cut(self, message: Cut) -> Iterator[Effect]:
        shard = self._shard
        yield Send(self._front, Parameters(shard.address, shard.version, self._news(), cut=message.cut))
        yield from shard.pin(message)

    def _news(self) -> tuple[Tensor, ...]:
        """The weights, if the front does not have them yet."""
        if self._sent == self._shard.version:
            return ()
        self._sent = self._shard.version
        return tuple(weight.detach() for weight in self._shard.weights.pin())

    def _restarted(self, message: Restarted) -> Iterator[Effect]:
        """The front was made anew, and begins again."""
        self._sent = 0
        yield from ()


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
        self._waiting: dict[CutId, _Waiting] = {}  # in the order of the cuts
        self._latest: dict[str, tuple[Tensor, ...]] = {}  # weights, by part

    def _cut(self, message: Cut) -> Iterator[Effect]:
        self._wait_for(message.cut).message = message
        return self._pin(message.cut)

    def _parameters(self, message: Parameters) -> Iterator[Effect]:
        payload, cut = message.payload, message.cut
        if cut is None or message.shard not in self._parts or not self._fits(message.shard, payload):
            return self._shard.refuse(message, "weights of another form than any part has")
        if self._shard.device is not None:
            payload = tuple(weight.to(self._shard.device) for weight in payload)
        if payload:
            self._latest[message.shard] = payload
        self._wait_for(cut).weights[message.shard] = self._latest.get(message.shard, ())
        return self._pin(cut)

    def _fits(self, part: str, weights: tuple[Tensor, ...]) -> bool:
        """Whether a part can have sent these: all of its weights, or none."""
        return not weights or self._shard.weights.can_adopt(weights, self._parts[part])

    def _wait_for(self, cut: CutId) -> _Waiting:
        """What there is of a cut; of too many the oldest is given up."""
        waiting = self._waiting.setdefault(cut, _Waiting())
        if len(self._waiting) > PINS_MAX:
            del self._waiting[next(iter(self._waiting))]
        return waiting

    def _pin(self, cut: CutId) -> Iterator[Effect]:
        """Pin the weights of all parts for a cut that has them, and pass it on.

        A cut before it that has not come by now will not come: a part was made anew on its way.
        """
        waiting, shard = self._waiting[cut], self._shard
        if waiting.message is None or len(waiting.weights) < len(self._parts):
            return
        for earlier in list(self._waiting):
            del self._waiting[earlier]
            if earlier == cut:
                break
        for part, weights in waiting.weights.items():
            if weights:
                shard.weights.adopt(weights, self._parts[part])
        yield from shard.pin(waiting.message)


@dataclass(slots=True)
class _Waiting:
    """What a front has of a cut."""

    message: Cut | None = None
    weights: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # by part
