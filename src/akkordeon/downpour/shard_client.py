"""Where a replica's gate stands with a shard: what it accumulated, fetched and has still to push.

A gate is a client of every shard of its position, mostly one. Each goes its own way: what was accumulated
for a shard, which of its versions the gate works on and what it was asked for concern that shard alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from akkordeon.core.actor import Effect, Send
from akkordeon.core.messages import Batch
from akkordeon.core.shard_messages import Fetch, Parameters, Push, Settle
from akkordeon.downpour.accumulators import Accumulator, GradientSum, WeightDelta
from akkordeon.downpour.compression import Compressor, can_be_packed
from akkordeon.downpour.differences import Received
from akkordeon.downpour.sync_policy import SyncPolicy
from akkordeon.pipeline.weights import Weights

__all__ = ["ShardClient"]


class ShardClient:
    """Where a replica's gate stands with one shard.

    Args:
        gate: its address.
        shard: address of the shard.
        policy: when it pushes and fetches, and what.
        weights: of the gate.
        indices: of those weights that the shard holds.
        learns: whether the gate has anything to push for them.
    """

    def __init__(
        self,
        gate: str,
        shard: str,
        policy: SyncPolicy,
        weights: Weights,
        indices: Sequence[int],
        learns: bool,
    ) -> None:
        self._gate = gate
        self._shard = shard
        self._policy = policy
        self._weights = weights
        self._indices = tuple(indices)
        self._learns = learns
        self._push_every = policy.push_every
        self._accumulator: Accumulator = (
            WeightDelta(self._now()) if policy.differences and learns else GradientSum()
        )
        self._compressor = Compressor(policy.compression)
        self._since_push: list[Batch] = []
        self._since_fetch = 0
        self._oldest: int | None = None  # the shard's version that the oldest gradient gathered goes back to
        self._received: Received | None = None  # what the next difference is from, where such come
        self._lent: deque[tuple[int, int]] = deque()  # (arrival, the shard's version), oldest first
        self._asked = 0  # fetches not answered yet
        self._late = False  # whether the next one fell due before that

    def _now(self) -> tuple[Tensor, ...]:
        """The weights as they are, in memory that no later step writes to."""
        now = self._weights.pin() if self._policy.differences else self._weights.now
        return tuple(now[i].detach() for i in self._indices)

    # ── fetching ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_new(self) -> bool:
        """Whether the shard was never asked for weights."""
        return not self._lent and not self._asked

    @property
    def must_wait(self) -> bool:
        """Whether the next forward needs weights that are not there yet."""
        return not self._lent or (self._asked > 0 and (self._late or self._policy.wait))

    def fetch(self) -> Effect:
        """Ask for weights."""
        self._asked += 1
        self._since_fetch = 0
        return Send(self._shard, Fetch(self._gate, is_first=not self._lent))

    def begin_again(self) -> Iterator[Effect]:
        """The shard was made anew and knows nobody: ask for the weights it has, if it was ever asked."""
        if not self.is_new:
            self._asked, self._late = 0, False
            yield self.fetch()

    def fits(self, message: Parameters) -> bool:
        """Whether these can be weights of the shard, or a difference of such."""
        if message.since is None:
            return self._weights.can_adopt(message.payload, self._indices)
        like = [self._weights.now[i] for i in self._indices]
        return can_be_packed((message.payload, message.scales), like)

    def is_next(self, message: Parameters) -> bool:
        """Whether it can be taken in: a difference can where it is from the weights that came last."""
        since = message.since
        return since is None or (self._received is not None and self._received.version == since)

    def fetch_whole(self) -> Iterator[Effect]:
        """Ask once more, as what came was a difference from what the gate does not have.

        It was on its way when the gate or the shard was made anew. A gate that has nothing yet will ask.
        """
        if self._lent:
            yield Send(self._shard, Fetch(self._gate, is_first=True))

    def install(self, message: Parameters, payload: tuple[Tensor, ...], arrival: int) -> Iterator[Effect]:
        """Have the gate go on with weights that came; ask for the next if they are due already.

        Args:
            message: that they came in.
            payload: its own, on the gate's device.
            arrival: counts what came, from any shard; batches remember it.
        """
        self._asked = max(0, self._asked - 1)
        self._push_every = message.push_every or self._push_every
        came = self._received_with(message, payload)
        self._weights.adopt(self._accumulator.continue_from(came, self._now()), self._indices)
        self._lent.append((arrival, message.version))
        if self._late:
            self._late = False
            yield self.fetch()

    def _received_with(self, message: Parameters, payload: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The weights that are meant; kept where the next may be a difference from them."""
        if self._policy.fetch_compression is None:
            return payload
        received = Received(message.version, payload)
        if message.since is not None and self._received is not None:
            received = self._received.plus((payload, message.scales), message.version)
        self._received = received
        return received.weights

    def drop_before(self, arrival: int) -> None:
        """Keep what batches that began with this arrival or later may go back to."""
        while len(self._lent) > 1 and self._lent[1][0] <= arrival:
            self._lent.popleft()

    # ── pushing ──────────────────────────────────────────────────────────────────────────────────────

    def gather(self, batch: Batch, gradients: Sequence[Tensor | None], arrival: int) -> None:
        """The gate has made a step, or made none and leaves it to the shard.

        Args:
            batch: it learned from.
            gradients: for all its weights, free to be worked on in place.
            arrival: the last one when the batch began.
        """
        base = next(version for arrived, version in reversed(self._lent) if arrived <= arrival)
        self._oldest = base if self._oldest is None else min(base, self._oldest)
        if self._learns:
            self._accumulator.add([gradients[i] for i in self._indices])
        self._since_push.append(batch)
        self._since_fetch += 1

    def sync(self, buffers: dict[str, Any]) -> Iterator[Effect]:
        """Push and fetch, if it is time."""
        fetch_every = self._policy.fetch_every
        push = len(self._since_push) >= self._push_every
        fetch = push if fetch_every is None else self._since_fetch >= fetch_every
        if fetch and self._asked:
            fetch, self._late = False, True
        if push:
            yield self._push(buffers, fetch)
        elif fetch:
            yield self.fetch()

    def settle(self, buffers: dict[str, Any], number: int) -> Iterator[Effect]:
        """Push the rest; the shard's answer comes after all that was pushed has been applied."""
        if self._since_push:
            yield self._push(buffers)
        yield Send(self._shard, Settle(self._gate, number))

    def _push(self, buffers: dict[str, Any], fetch: bool = False) -> Effect:
        assert self._oldest is not None, "a step was made"
        now = self._now()
        gathered = self._accumulator.take(now) if self._learns else [None] * len(now)
        payload, scales = self._compressor.pack(gathered)
        batches = tuple(self._since_push)
        push = Push(self._gate, self._oldest, len(batches), payload, scales, buffers, fetch, batches)
        self._since_push, self._oldest = [], None
        if fetch:
            self._asked, self._since_fetch = self._asked + 1, 0
        return Send(self._shard, push)
