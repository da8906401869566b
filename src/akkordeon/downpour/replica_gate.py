"""A gate of a replica: a gate that takes local steps, pushes what it gathered, and fetches fresh weights.

    Backward ─▶ gradient to the gate before ─▶ [local step] ─▶ every push_every:  Push  ─▶ shard
                                                            └▶ every fetch_every: Fetch ─▶ shard
    Parameters ◀─ shard: the weights from now on

With ``wait`` a forward that comes while weights are on their way is held until they are there. In the
background work goes on meanwhile, but only until the next weights fall due: a replica that ran further
ahead would pile up pushes at a shard that is too slow for them. The very first forward is held in any
case: no replica works on weights that no shard gave it.

Each position does this on its own; replicas never talk to each other. Where a position is split (see
split_shard.py), its gate is a client of each shard of it. The first is the front's: it is asked first of
all, and only once it has answered are the others. So a warm start is in one hand; if every shard chose
for itself who goes first, two replicas could wait for each other for ever.

What a module writes to its own weights in a forward reaches the shard with differences, and with nothing
else. So it is refused where gradients are pushed, as it is for weights that do not train.

A push that a shard drops is told to the sentinels whose batches were in it: they count as refused. When
a sentinel is gone, however it ended, what was gathered of its batches is pushed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from akkordeon.core.actor import Effect, Send
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.core.messages import Backward, Fault, Forget, Forward, Probe, Refused
from akkordeon.core.payload import Payload
from akkordeon.core.plain_state import StageState
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.shard_messages import Dropped, Parameters, Settle, Settled
from akkordeon.downpour.buffer_merger import are_alike, on_device
from akkordeon.downpour.shard_client import ShardClient
from akkordeon.downpour.sync_policy import SyncPolicy
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.stage import Position, Stashed
from akkordeon.pipeline.updater import clipped

__all__ = ["ReplicaGate", "writes_sentence"]

DROPPED_MAX = 10
"""Pushes dropped in a row after which a gate gives up."""


def writes_sentence(name: str, learns: bool) -> str:
    """Why a module that writes to a weight in its forward cannot be replicated."""
    instead = "push differences" if learns else "make it a buffer"
    return (
        f"its module writes to its weight {name!r} in the forward, which no push of gradients would tell its "
        f"shard: {instead}, or leave the weight as it is"
    )


class ReplicaGate(GateActor):
    """A replica's gate at work. Its ``version`` counts local steps and fetches.

    Args:
        gate: the recipe.
        position: its place in the replica's row.
        policy: when it pushes and fetches, and what.
        shard: address of the shard of its position.
        parts: where the position is split, which weights each further shard holds; the first then holds
            buffers alone.
        restored: of one that is gone, whose place it takes: the version alone, as weights are fetched.
    """

    def __init__(
        self,
        gate: Gate,
        position: Position,
        policy: SyncPolicy,
        shard: str,
        parts: Mapping[str, tuple[int, ...]] | None = None,
        restored: StageState | None = None,
    ) -> None:
        own = replace(gate, optimizer=gate.optimizer if policy.local_step else None, ema=None)
        super().__init__(own, position, restored, anew=restored is not None)
        self._policy = policy
        self._learns = gate.optimizer is not None
        self._clip_norm = gate.clip_norm
        holds = {shard: (), **parts} if parts else {shard: tuple(self.weights.trainable)}
        self._clients = {
            shard: ShardClient(self.address, shard, policy, self.weights, indices, self._learns)
            for shard, indices in holds.items()
        }
        self._front, *self._others = self._clients.values()
        self._arrivals = 0  # of weights, from any shard
        self._held: deque[Forward] = deque()
        self._settling: dict[int, tuple[str | None, set[str]]] = {}  # who asked, and who is to answer
        self._settles = itertools.count()
        # Writes through ``.data`` are not counted: the first forward is looked at for them.
        self._before: list[Tensor] | None = None
        self._has_run = False
        self._handlers |= {
            Parameters: self._parameters,
            Settled: self._settled,
            Dropped: self._dropped,
            Restarted: self._restarted,
        }

    # ── fetching ─────────────────────────────────────────────────────────────────────────────────────

    def _forward(self, message: Forward) -> Iterator[Effect]:
        if self._must_wait() and not self._is_forgotten(message.batch):
            return self._hold(message)
        return super()._forward(message)

    def _must_wait(self) -> bool:
        """Whether the next forward needs weights that are not there yet."""
        return self._front.must_wait or any(client.must_wait for client in self._others)

    def _hold(self, message: Forward) -> Iterator[Effect]:
        """Keep a forward until the weights for it are there."""
        if len(self._held) >= self.position.max_in_flight:
            reason = f"{len(self._held)} batches wait here for weights, the network's most"
            yield self._refuse(message.batch, Fault.TOO_MANY, reason)
            return
        self._held.append(message)
        if self._front.is_new:
            yield self._front.fetch()

    def _parameters(self, message: Parameters) -> Iterator[Effect]:
        client, payload, buffers = self._clients.get(message.shard), message.payload, message.buffers
        if client is None or not (client.fits(message) and are_alike(buffers, self.buffers.now)):
            yield from self._refuse_message(message, f"weights of {message.shard} that are none of this gate")
            return
        if not client.is_next(message):
            yield from client.fetch_whole()
            return
        if self.device is not None:
            payload = tuple(tensor.to(self.device) for tensor in payload)
            buffers = on_device(buffers, self.device)
        if buffers:
            self.buffers.install(buffers)
        self._arrivals += 1
        if client is self._front:  # one fetch counts once in τ, from however many shards
            self.version += 1
        yield from client.install(message, payload, self._arrivals)
        client.drop_before(min((s.arrivals for s in self.stash.values()), default=self._arrivals))
        if client is self._front:
            for other in self._others:
                if other.is_new:
                    yield other.fetch()
        if not self._has_run:
            self._before = [weight.detach().clone() for weight in self.weights.now]
        while self._held and not self._must_wait():
            yield from super()._forward(self._held.popleft())

    def _stashed(self, message: Forward, x: Payload, y: Payload) -> Stashed:
        self._refuse_writes()
        return Stashed(x, y, self.weights.now, self.version, arrivals=self._arrivals)

    def _refuse_writes(self) -> None:
        """Fail if the forward wrote to weights whose new values no push would carry."""
        weights, before = self.weights, self._before
        self._before, self._has_run = None, True
        for i, weight in enumerate(weights.now):
            wrote = weight._version > 0 or (before is not None and not torch.equal(weight, before[i]))
            if wrote and not (self._policy.differences and weight.requires_grad):
                raise RecipeError(writes_sentence(weights.names[i], weight.requires_grad))

    # ── stepping and pushing ─────────────────────────────────────────────────────────────────────────

    def _learn(
        self, passed: Backward, gradients: list[Tensor | None], stashed: Stashed, staleness: int
    ) -> Iterator[Effect]:
        yield self._to_previous(passed)
        batch, ours = passed.batch, self._to_push(gradients)
        if self._policy.local_step:
            if not self._updater.update(gradients, stashed.weights, staleness):
                yield self._refuse_update(batch)
                return
            self.version += 1
        for client in self._clients.values():
            client.gather(batch, ours, stashed.arrivals)
        self.staleness_seen[staleness] += 1
        for client in self._clients.values():
            yield from client.sync(self._buffers_for(client))
        yield from self._tell_watchers()

    def _to_push(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients for the shards, which a local optimizer must not get to write to."""
        if self._learns and self._clip_norm is not None:
            return clipped(gradients, self._clip_norm)
        if self._updater.spares_gradients:
            return gradients
        return [None if gradient is None else gradient.clone() for gradient in gradients]

    def _buffers_for(self, client: ShardClient) -> dict[str, Any]:
        return self.buffers.now if client is self._front else {}

    # ── settling and ending ──────────────────────────────────────────────────────────────────────────

    def _settle(self, message: Settle) -> Iterator[Effect]:
        """Push the rest, and have every shard tell when it is applied."""
        return self._push_the_rest(message.asker)

    def _push_the_rest(self, asker: str | None) -> Iterator[Effect]:
        number = next(self._settles)
        self._settling[number] = asker, set(self._clients)
        for client in self._clients.values():
            yield from client.settle(self._buffers_for(client), number)

    def _settled(self, message: Settled) -> Iterator[Effect]:
        """A shard has all of it; once all have, so has the asker."""
        if message.number not in self._settling:  # a shard that was made anew was asked twice
            return
        asker, expected = self._settling[message.number]
        expected.discard(message.by)
        if not expected:
            del self._settling[message.number]
            if asker is not None:
                yield Send(asker, Settled(self.address))

    def _restarted(self, message: Restarted) -> Iterator[Effect]:
        """A shard was made anew: ask it again for all that it was asked for."""
        yield from self._clients[message.gate].begin_again()
        for number, (_, expected) in self._settling.items():
            if message.gate in expected:
                yield Send(message.gate, Settle(self.address, number))

    def _forget(self, message: Forget) -> Iterator[Effect]:
        """A sentinel that is gone will not ask for what is left of it to be pushed, nor end a warm start."""
        yield from super()._forget(message)
        if message.number is None:
            yield from self._push_the_rest(None)

    def _dropped(self, message: Dropped) -> Iterator[Effect]:
        """Tell whose batches they were; give up when nothing gets through any more."""
        if message.shard not in self._clients:
            yield from self._refuse_message(message, f"{message.shard} got no push that it could drop")
            return
        self.refusals[message.fault] += len(message.batches)
        reason = message.reason or "it did not say why"
        for batch in message.batches:
            yield Send(batch.sentinel, Refused(batch, message.shard, message.fault, reason))
        if message.in_a_row >= DROPPED_MAX:
            raise DataError(f"{message.shard} dropped its last {message.in_a_row} pushes: {reason}")

    def last_words(self) -> Iterator[Effect]:
        """What there was to tell; the weights that count are the shard's."""
        yield from self._probe(Probe(0))
