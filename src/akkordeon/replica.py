"""A gate of a replica: a gate that takes local steps, pushes what it gathered, and fetches fresh weights.

    Backward ─▶ gradient to the gate before ─▶ [local step] ─▶ every push_every:  Push  ─▶ shard
                                                            └▶ every fetch_every: Fetch ─▶ shard
    Parameters ◀─ shard: the weights from now on

With ``wait`` a forward that comes while weights are on their way is held until they are there. In the
background work goes on meanwhile, but only until the next weights fall due: a replica that ran further
ahead would pile up pushes at a shard that is too slow for them. The very first forward is held in any
case: no replica works on weights that no shard gave it.

Each position does this on its own; replicas never talk to each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from akkordeon.actor import Effect, Send
from akkordeon.compression import COMPRESSIONS, Compressor
from akkordeon.errors import RecipeError
from akkordeon.gate import Gate, GateActor
from akkordeon.gathering import Differences, Gathering, Gradients
from akkordeon.learner import clipped
from akkordeon.messages import Fault, Fetch, Forward, Parameters, Probe, Push, Settle, Settled
from akkordeon.stage import Place, Stashed

__all__ = ["Exchange", "ReplicaGate"]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What the gates of a replica and their shards have to do with each other.

    Args:
        push_every: steps between pushes.
        fetch_every: steps between fetches; with each push if None.
        wait: whether a forward waits for weights that are on their way.
        local_step: whether the gate's own optimizer makes a step with each gradient.
        differences: push how far the weights have come instead of the sum of gradients.
        compression: of pushes: None, ``"bf16"`` or ``"int8"``.

    Raises:
        RecipeError: a number out of range, or differences without local steps, which would be zero.
    """

    push_every: int = 1
    fetch_every: int | None = None
    wait: bool = False
    local_step: bool = True
    differences: bool = False
    compression: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later."""
        if self.push_every < 1:
            raise RecipeError(f"push_every is at least 1, got {self.push_every}")
        if self.fetch_every is not None and self.fetch_every < 1:
            raise RecipeError(f"fetch_every is at least 1, got {self.fetch_every}")
        if self.compression not in COMPRESSIONS:
            raise RecipeError(f"compression is None, 'bf16' or 'int8', got {self.compression!r}")
        if self.differences and not self.local_step:
            raise RecipeError(
                "without local steps the weights of a replica do not move, so there is no difference to "
                "push; use local_step=True, or push gradients"
            )


class ReplicaGate(GateActor):
    """A replica's gate at work. Its ``version`` counts local steps and fetches.

    Args:
        gate: the recipe.
        place: its place in the replica's row.
        exchange: what it does when.
        shard: address of the shard of its position.
    """

    def __init__(self, gate: Gate, place: Place, exchange: Exchange, shard: str) -> None:
        super().__init__(gate if exchange.local_step else replace(gate, optimizer=None), place)
        self._exchange = exchange
        self._shard = shard
        self._learns = gate.optimizer is not None
        self._clip_norm = gate.clip_norm
        self._push_every = exchange.push_every
        self._gathering: Gathering = (
            Differences(self._trainable()) if exchange.differences else Gradients(theirs=exchange.local_step)
        )
        self._compressor = Compressor(exchange.compression)
        self._since_push = 0
        self._since_fetch = 0
        self._oldest: int | None = None  # the shard's version that the oldest gradient gathered goes back to
        self._fetched: deque[tuple[int, int]] = deque()  # (own version, the shard's), oldest first
        self._asked = 0  # fetches not answered yet
        self._late = False  # whether the next one fell due before that
        self._held: deque[Forward] = deque()
        self._settling: deque[str] = deque()
        self._handlers |= {Parameters: self._parameters, Settled: self._settled}

    def _trainable(self) -> tuple[Tensor, ...]:
        return tuple(self.weights.now[i].detach() for i in self.weights.trainable)

    # ── fetching ─────────────────────────────────────────────────────────────────────────────────────

    def _forward(self, message: Forward) -> Iterator[Effect]:
        return self._hold(message) if self._must_wait() else super()._forward(message)

    def _must_wait(self) -> bool:
        """Whether the next forward needs weights that are not there yet."""
        return not self._fetched or (self._asked > 0 and (self._late or self._exchange.wait))

    def _hold(self, message: Forward) -> Iterator[Effect]:
        """Keep a forward until the weights for it are there."""
        if len(self._held) >= self.place.max_in_flight:
            reason = f"{len(self._held)} batches wait here for weights, the network's most"
            yield self._refuse(message.batch, Fault.TOO_MANY, reason)
            return
        self._held.append(message)
        if not self._asked:
            yield self._fetch()

    def _fetch(self) -> Effect:
        self._asked += 1
        self._since_fetch = 0
        return Send(self._shard, Fetch(self.address))

    def _parameters(self, message: Parameters) -> Iterator[Effect]:
        self._asked = max(0, self._asked - 1)
        self._push_every = message.push_every or self._push_every
        payload = message.payload
        if self.device is not None:
            payload = tuple(tensor.to(self.device) for tensor in payload)
        self.weights.adopt(self._gathering.onto(payload, self._trainable()))
        self.version += 1
        self._fetched.append((self.version, message.version))
        self._drop_old_fetches()
        if self._late:
            self._late = False
            yield self._fetch()
        while self._held and not self._must_wait():
            yield from super()._forward(self._held.popleft())

    def _drop_old_fetches(self) -> None:
        """Keep the fetches that batches in flight may go back to."""
        oldest = min((stashed.version for stashed in self.stash.values()), default=self.version)
        while len(self._fetched) > 1 and self._fetched[1][0] <= oldest:
            self._fetched.popleft()

    def _version_of_shard(self, version: int) -> int:
        """The shard's version that our version goes back to."""
        return next(shards for ours, shards in reversed(self._fetched) if ours <= version)

    # ── stepping and pushing ─────────────────────────────────────────────────────────────────────────

    def _learn(self, gradients: list[Tensor | None], stashed: Stashed, staleness: int) -> Iterator[Effect]:
        base = self._version_of_shard(stashed.version)
        self._oldest = base if self._oldest is None else min(base, self._oldest)
        if self._learns:
            ours = gradients if self._clip_norm is None else clipped(gradients, self._clip_norm)
            self._gathering.add([ours[i] for i in self.weights.trainable])
        if self._exchange.local_step:
            self._learner.learn(gradients, stashed.weights, staleness)
            self.version += 1
        self.staleness_seen[staleness] += 1
        self._since_push += 1
        self._since_fetch += 1
        fetch_every = self._exchange.fetch_every
        push = self._since_push >= self._push_every
        fetch = push if fetch_every is None else self._since_fetch >= fetch_every
        if fetch and self._asked:
            fetch, self._late = False, True
        if push:
            yield self._push(fetch)
        elif fetch:
            yield self._fetch()
        yield from self._tell_watchers()

    def _push(self, fetch: bool = False) -> Effect:
        assert self._oldest is not None, "a step was made"
        now = self._trainable()
        gathered = self._gathering.take(now) if self._learns else [None] * len(now)
        payload, scales = self._compressor.pack(gathered)
        buffers = self.buffers.now if self.buffers.names else ()
        push = Push(self.address, self._oldest, self._since_push, payload, scales, buffers, fetch)
        self._since_push, self._oldest = 0, None
        if fetch:
            self._asked, self._since_fetch = self._asked + 1, 0
        return Send(self._shard, push)

    # ── settling and ending ──────────────────────────────────────────────────────────────────────────

    def _settle(self, message: Settle) -> Iterator[Effect]:
        """Push the rest; the shard's answer comes after all that was pushed has been applied."""
        if self._since_push:
            yield self._push()
        self._settling.append(message.asker)
        yield Send(self._shard, Settle(self.address))

    def _settled(self, message: Settled) -> Iterator[Effect]:
        yield Send(self._settling.popleft(), Settled(self.address))

    def last_words(self) -> Iterator[Effect]:
        """What there was to tell; the weights that count are the shard's."""
        yield from self._probe(Probe(0))
