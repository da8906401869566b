"""Replicas' gates and shards that keep to the protocol and compute nothing; see downpour/shard_client.py."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from akkordeon.core.actor import Actor, Effect, Send
from akkordeon.core.messages import Backward, Batch, Forward
from akkordeon.core.shard_messages import Fetch, Parameters, Push
from akkordeon.engines.simulator.links import Ghost
from akkordeon.experiments.schedules.dry_actors import DryGate

__all__ = ["DryReplicaGate", "DryShard"]


class DryReplicaGate(DryGate):
    """A replica's gate without a module, which fetches in the background.

    Args:
        row: what a :class:`DryGate` is made of.
        shard: address of the shard of its position.
        push_every: steps between pushes.
        push_bytes: of a push.
    """

    def __init__(self, *row: Any, shard: str, push_every: int, push_bytes: int) -> None:
        super().__init__(*row)
        self._shard = shard
        self._push_every = push_every
        self._push = Ghost(push_bytes)
        self._lent: int | None = None  # the shard's version that it works on
        self._asked = False
        self._late = False  # whether the next weights fell due before the last came
        self._held: deque[Forward] = deque()
        self._bases: dict[Batch, int] = {}
        self._oldest: list[int] = []  # versions that the steps since the last push go back to

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Fetch before the first forward, push and fetch when it is time, wait if the weights are late."""
        kind = type(message)
        if kind is Forward:
            yield from self._forward(message, now_s)
        elif kind is Parameters:
            self._lent, self._asked = message.version, False
            if self._late:
                self._late = False
                yield self._fetch()
            while self._held and not self._must_wait:
                yield from self._forward(self._held.popleft(), now_s)
        else:
            yield from super().receive(message, now_s)
            if kind is Backward and message.batch in self._bases:
                yield from self._sync(message.batch)

    @property
    def _must_wait(self) -> bool:
        return self._lent is None or (self._asked and self._late)

    def _forward(self, message: Forward, now_s: float) -> Iterator[Effect]:
        if self._lent is None or self._must_wait:
            self._held.append(message)
            if self._lent is None and not self._asked:
                yield self._fetch()
        else:
            self._bases[message.batch] = self._lent
            yield from super().receive(message, now_s)

    def _fetch(self) -> Effect:
        self._asked = True
        return Send(self._shard, Fetch(self.address))

    def _sync(self, batch: Batch) -> Iterator[Effect]:
        self._oldest.append(self._bases.pop(batch))
        if len(self._oldest) == self._push_every:
            fetch, self._late = not self._asked, self._asked
            self._asked = True
            base, self._oldest = min(self._oldest), []
            yield Send(self._shard, Push(self.address, base, self._push_every, self._push, fetch=fetch))  # type: ignore[arg-type]


class DryShard(Actor):
    """A shard without weights.

    Args:
        address: its own.
        weight_bytes: of what it lends.
    """

    def __init__(self, address: str, weight_bytes: int) -> None:
        self.address = address
        self._weights = Ghost(weight_bytes)
        self.version = 0
        self.staleness_seen: Counter[int] = Counter()

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        """Apply a push as it comes; lend what there is."""
        if type(message) is Push:
            self.staleness_seen[self.version - message.version] += 1
            self.version += 1
        if type(message) is Fetch or message.fetch:
            yield Send(message.asker, Parameters(self.address, self.version, self._weights))  # type: ignore[arg-type]
