"""A parameter shard: the master weights of one gate position, for all replicas of a row.

    replica/0/gate/1 ──Push──▶ ┌─────────┐ ◀──Fetch── replica/1/gate/1
    replica/2/gate/1 ──Push──▶ │ shard/1 │ ──Parameters──▶
                               └─────────┘ ◀──Cut, Evaluate, Export── sentinels

A shard is a stage: what validators, predictions and ``session.module()`` see is the row of shards.
Weights are never written to once they are a version, so lending them to a replica costs nothing, and
remembering what a replica was lent (w_bak of DC-ASGD) is keeping a reference.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from akkordeon.core.actor import Effect, Report, Send
from akkordeon.core.messages import Cut, Fault, Forget, Message, Probe, Scored
from akkordeon.core.payload import all_finite, nbytes, tensors
from akkordeon.core.plain_state import LearnerState, StageState
from akkordeon.core.reports import ShardStatus
from akkordeon.core.shard_messages import Dropped, Fetch, Left, Parameters, Push, Settle, Settled
from akkordeon.downpour.buffer_merger import BufferMerger, are_alike, on_device
from akkordeon.downpour.compression import can_be_packed, unpacked
from akkordeon.downpour.differences import Lending
from akkordeon.downpour.pacing import StepsBySpeed, WarmStart
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.refusals.actor import keep
from akkordeon.pipeline.stage import Position, Stage
from akkordeon.pipeline.staleness.kept_weights import Stash
from akkordeon.pipeline.staleness.rule import Rule
from akkordeon.pipeline.updater import Updater
from akkordeon.pipeline.weights import Snapshot

__all__ = ["Handlers", "ParameterShard", "ShardActor", "SplitRole", "WeightIndices"]

ASKERS_MAX = 1024
"""So many gates may be lent weights."""

DROPPED_MAX = 1000
"""Pushes of a gate dropped in a row after which it is read no more; an honest one gives up before."""

WeightIndices = tuple[int, ...]
"""Some of a module's parameters, by their numbers among all of them."""

Handlers = Mapping[type, Callable[[Any], Iterator[Effect]]]
"""What is done with messages, by their type."""


@dataclass(frozen=True)
class ParameterShard:
    """The recipe of a shard; :class:`akkordeon.Downpour` makes one for each gate.

    Args:
        module: of the gate.
        optimizer: applied to each push as it comes; None leaves the weights as they are.
        staleness: the rule for pushes. τ is the number of pushes applied since the pusher's fetch.
        max_staleness: pushes older than so many updates are dropped, and counted; None takes any.
        warm_start: pushes of the first replica before any other is given weights.
        steps_by_speed: replicas are told to push every floor(H·v/v_max) steps; H, or None for no such thing.
        name: for reports; the position if not given.
        device: where the weights live.
        autocast: what evaluations run under; that of whoever staged the network if None.
        compression: of the weights that are lent; see differences.py.
        ema: keep an average of the weights beside them, with this decay, renewed by each push applied.
        held_elsewhere: the weights that other shards of the position lend, learn and hand out.
    """

    module: nn.Module
    optimizer: OptimizerFactory | None
    staleness: Rule = field(default_factory=Stash)
    max_staleness: int | None = None
    warm_start: int = 0
    steps_by_speed: int | None = None
    name: str | None = None
    device: Any = None
    autocast: torch.dtype | None = None
    compression: str | None = None
    ema: float | None = None
    held_elsewhere: WeightIndices = ()


class SplitRole(Protocol):
    """What a shard does otherwise where it is one of several of its position; see split_shard.py."""

    handlers: Handlers
    """They take the place of the shard's own."""


class ShardActor(Stage):
    """A shard at work.

    Args:
        shard: the recipe.
        position: its place in the row of shards.
        role: makes its role of it, where the position is split.
        restored: what it goes on from; None begins with the recipe's weights.
        anew: it takes the place of one that is gone: what goes back to weights of that one is dropped.
    """

    def __init__(
        self,
        shard: ParameterShard,
        position: Position,
        role: Callable[[ShardActor], SplitRole] | None = None,
        restored: StageState | None = None,
        *,
        anew: bool = False,
    ) -> None:
        super().__init__(
            shard.module, position, shard.name, shard.device, restored=restored, autocast=shard.autocast
        )
        self._recipe = shard
        self._updater = Updater(self.weights, shard.optimizer, shard.staleness, None, self.label, shard.ema)
        if restored is not None and restored.learner is not None:
            self._updater.load(restored.learner)
        self._keeps_lent = shard.staleness.uses_old_weights
        self._lent: dict[str, dict[int, Snapshot]] = {}  # by replica's gate and version
        self._lending = Lending(shard.compression)
        self._merger = BufferMerger(self.buffers.now)
        self._warm_start = WarmStart(0 if anew else shard.warm_start)
        self._since = self.version if anew else 0
        self._steps_by_speed = StepsBySpeed(shard.steps_by_speed)
        self._counts: Counter[str] = Counter()
        self._dropped: OrderedDict[str, int] = OrderedDict()  # pushes in a row, by replica's gate
        self._handlers |= {
            Fetch: self._fetch,
            Push: self._push,
            Settle: self._settle,
            Left: self._left,
            Scored: self._scored,
        }
        for i in shard.held_elsewhere:
            self.weights.trainable.remove(i)
        self._held_elsewhere = {self.weights.names[i] for i in shard.held_elsewhere}
        self.role = role(self) if role is not None else None
        if self.role is not None:
            self._handlers |= self.role.handlers

    # ── lending ──────────────────────────────────────────────────────────────────────────────────────

    def _fetch(self, message: Fetch) -> Iterator[Effect]:
        if (message.asker, None) in self._forgotten:  # it died after it had asked
            return
        if self._dropped.get(message.asker, 0) >= DROPPED_MAX:
            return
        if message.is_first:
            self._drop_what_is_kept_of(message.asker)
        waiting = self._warm_start.waiting
        known = self._merger.knows(message.asker) or message.asker in waiting
        if not known and len(self._merger) + len(waiting) >= ASKERS_MAX:
            reason = f"{ASKERS_MAX} gates are lent weights, the most that a shard lends them to"
            yield from self._refuse_message(message, reason, Fault.TOO_MANY)
            return
        self._steps_by_speed.start(message.asker, self._now_s)
        if self._warm_start.admits(message.asker, self.version):
            yield self._lend(message.asker)
        elif message.asker not in waiting:
            waiting.append(message.asker)

    def _lend(self, asker: str) -> Effect:
        pinned = self.weights.pin()
        now = tuple(pinned[i].detach() for i in self.weights.trainable)
        (payload, scales), since = self._lending.pack(asker, self.version, now)
        if self._keeps_lent:
            self._lent.setdefault(asker, {})[self.version] = self._has(asker, now)
        self._counts["fetches"] += 1
        buffers: dict[str, Any] = {}
        if not self._merger.knows(asker):
            buffers = self.buffers.now
            self._merger.lend(asker, buffers)
        sent = (*payload, *(buffer for buffer in buffers.values() if isinstance(buffer, Tensor)))
        self._counts["bytes_out"] += sum(map(nbytes, tensors(sent)))
        steps = self._steps_by_speed.steps_of(asker)
        fetched = Parameters(self.address, self.version, payload, steps, buffers, since=since, scales=scales)
        return Send(asker, fetched)

    def _has(self, asker: str, lent: tuple[Tensor, ...]) -> Snapshot:
        """All weights as a gate has them that was just lent these."""
        has = dict(zip(self.weights.trainable, self._lending.lent(asker, lent), strict=True))
        return tuple(has.get(i, weight) for i, weight in enumerate(self.weights.now))

    def _release_waiting(self) -> Iterator[Effect]:
        waiting = self._warm_start.waiting
        while waiting:
            yield self._lend(waiting.popleft())

    # ── learning ─────────────────────────────────────────────────────────────────────────────────────

    def _push(self, message: Push) -> Iterator[Effect]:
        if self._dropped.get(message.asker, 0) >= DROPPED_MAX:
            return
        self._counts["pushes"] += 1
        self._counts["bytes_in"] += sum(map(nbytes, tensors(message.payload)))
        if self._merger.knows(message.asker):
            self._steps_by_speed.record_push(message.asker, message.steps, self._now_s)
        then = self._then(message)
        gradients = self._gradients(message)
        if gradients is None:
            yield self._drop(message, Fault.FORM, "it does not have the form of the weights")
        elif then is None:
            yield self._drop(message, Fault.UNKNOWN, "it goes back to weights that were not lent")
        else:
            yield from self._apply(message, gradients, then)
        if message.fetch and self._merger.knows(message.asker):
            yield self._lend(message.asker)
        elif message.fetch:  # a shard that was made anew has lent nobody anything yet
            yield from self._fetch(Fetch(message.asker))
        if (message.asker, None) in self._forgotten:  # it died after it had pushed
            yield from self._is_gone(message.asker)
        if self._warm_start.waiting and self._warm_start.is_over(self.version):
            yield from self._release_waiting()

    def _apply(self, message: Push, gradients: list[Tensor | None], then: Snapshot) -> Iterator[Effect]:
        staleness, limit = self.version - message.version, self._recipe.max_staleness
        if not self._since <= message.version <= self.version:
            reason = "it goes back to weights that were lent before the shard was made anew"
            yield self._drop(message, Fault.TOO_STALE, reason)
            return
        if not self._merger.knows(message.asker) and (message.asker, None) not in self._forgotten:
            yield self._drop(message, Fault.UNKNOWN, "it was lent no weights")
            return
        if limit is not None and staleness > limit:
            yield self._drop(message, Fault.TOO_STALE, f"it is {staleness} updates old, at most {limit}")
            return
        if not (all_finite(gradients) and self._are_finite(message.buffers)):
            yield self._drop(message, Fault.NOT_FINITE, "it is not finite")
            return
        if not self._updater.update(gradients, then, staleness):
            yield self._drop(message, Fault.NOT_FINITE, "it would make the weights not finite")
            return
        if message.buffers:
            self._merge(message)
        self.version += 1
        self.staleness_seen[staleness] += 1
        self._dropped.pop(message.asker, None)
        yield from self._tell_watchers()
        yield from self._save_if_due()

    def _are_finite(self, buffers: dict[str, Any]) -> bool:
        """Whether they are, but for those of which ours are not either, as in a mask."""
        both = [(theirs, self.buffers.now[name]) for name, theirs in buffers.items()]
        return all(all_finite([t]) or not all_finite([m]) for t, m in both if isinstance(t, Tensor))

    def _merge(self, message: Push) -> None:
        theirs = message.buffers if self.device is None else on_device(message.buffers, self.device)
        merged = self._merger.merge(message.asker, self.buffers.now, theirs, message.steps)
        self.buffers.install(merged)

    def _drop(self, message: Push, fault: Fault, reason: str) -> Effect:
        self.refusals[fault] += 1
        in_a_row = self._dropped.get(message.asker, 0)
        if fault is not Fault.TOO_STALE:  # which says that others are faster, not that anything is wrong
            in_a_row += 1
            keep(self._dropped, message.asker, in_a_row)
        why = f"the update with it was dropped: {reason}"
        return Send(message.asker, Dropped(self.address, message.batches, fault, why, in_a_row))

    def _then(self, message: Push) -> Snapshot | None:
        """The weights the oldest gradient of a push was taken at, where the rule asks for them."""
        if not self._keeps_lent:
            return self.weights.now
        lent = self._lent.get(message.asker, {})
        for version in [version for version in lent if version < message.version]:
            del lent[version]
        return lent.get(message.version)

    def _gradients(self, message: Push) -> list[Tensor | None] | None:
        """One for each parameter, as the updater wants them; None if they do not fit."""
        like = [self.weights.now[i] for i in self.weights.trainable]
        pushed = message.payload, message.scales
        if not (can_be_packed(pushed, like) and are_alike(message.buffers, self.buffers.now)):
            return None
        found = unpacked(pushed, like)
        if self.device is not None:
            found = [None if tensor is None else tensor.to(self.device) for tensor in found]
        if not self._updater.spares_gradients:  # what is in the message is not ours to write to
            found = [None if tensor is None else tensor.clone() for tensor in found]
        return self.weights.at_all_places(found)

    def _learner_state(self) -> LearnerState:
        return self._updater.state()

    def _scored(self, message: Scored) -> Iterator[Effect]:
        self._updater.scored(message.value)
        yield from ()

    # ── cuts ─────────────────────────────────────────────────────────────────────────────────────────

    def refuse(self, message: Message, reason: str) -> Iterator[Effect]:
        """Stay as it is, and say so."""
        return self._refuse_message(message, reason)

    def pin(self, cut: Cut) -> Iterator[Effect]:
        """Pin the weights for a cut and pass it on, as every stage does."""
        return self._cut(cut)

    def _named(self, weights: Snapshot) -> Iterator[tuple[str, Tensor]]:
        """What no other shard hands out: of theirs, these are copies, and may be old ones."""
        return (named for named in super()._named(weights) if named[0] not in self._held_elsewhere)

    # ── coming, going and telling ────────────────────────────────────────────────────────────────────

    def _settle(self, message: Settle) -> Iterator[Effect]:
        yield Send(message.asker, Settled(self.address, message.number))
        if self._warm_start.finish(message.asker):
            yield from self._release_waiting()

    def _forget(self, message: Forget) -> Iterator[Effect]:
        """Somebody is lost: a sentinel, or the gate of a replica, of which more may be on its way."""
        yield from super()._forget(message)
        yield from self._is_gone(message.sender)

    def _left(self, message: Left) -> Iterator[Effect]:
        """The gate of a replica has ended, and nothing more of it will come."""
        return self._is_gone(message.by)

    def _drop_what_is_kept_of(self, who: str) -> None:
        self._lent.pop(who, None)
        self._lending.remove(who)
        self._dropped.pop(who, None)
        self._merger.remove(who)
        self._steps_by_speed.remove(who)

    def _is_gone(self, who: str) -> Iterator[Effect]:
        self._drop_what_is_kept_of(who)
        if self._warm_start.remove(who):
            yield from self._release_waiting()

    def _probe(self, message: Probe) -> Iterator[Effect]:
        yield Report(
            ShardStatus(
                probe=message.number,
                address=self.address,
                name=self.label,
                index=self.position.index,
                version=self.version,
                stashed=0,
                pinned=len(self.pins),
                staleness=dict(self.staleness_seen),
                refused={fault.name.lower(): count for fault, count in self.refusals.items()},
                waiting=len(self._warm_start.waiting),
                pushes=self._counts["pushes"],
                fetches=self._counts["fetches"],
                bytes_in=self._counts["bytes_in"],
                bytes_out=self._counts["bytes_out"],
            )
        )
