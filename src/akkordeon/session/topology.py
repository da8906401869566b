"""Who is in a running network and who talks to whom: one row of gates, or shards and replicas of a row.

A session asks its topology and needs not know which of the two it has.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from akkordeon.core.actor import Spawn
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Close, Forget, Message
from akkordeon.core.plain_state import StageState
from akkordeon.core.schedules import ASYNC, Schedule
from akkordeon.core.shard_messages import Left
from akkordeon.data.sources import as_batches
from akkordeon.data.split import deal_data
from akkordeon.downpour.recipe import Downpour
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.surgery.rows import free_address, with_gates
from akkordeon.sentinels.recipes import Evaluation, Sentinel, Streaming, Training

__all__ = ["ReplicaTopology", "RowTopology", "topology_of"]

PAST_MAX = 64
"""Rows that there were of which modules can be made, as of the best weights."""

States = Mapping[str, Mapping[str, Tensor]]
"""Weights and buffers by address and name."""


class RowTopology:
    """One row of gates: every sentinel talks to it, and cuts are made of it.

    Args:
        network: the recipe.
        past: addresses of gates that there were before.

    Attributes:
        row: where cuts are made, head first.
        network: the recipe, as it has become.
    """

    def __init__(self, network: Network | Downpour, past: Iterable[str] = ()) -> None:
        self.row = network.row()
        self.network = network
        self._addresses = {*self.row, *past}  # that there ever were
        self._newcomers: dict[str, Gate] = {}
        self._before: deque[Network] = deque(maxlen=PAST_MAX)

    @property
    def owned(self) -> tuple[str, ...]:
        """Those of the row that end with the session and leave it their weights."""
        return self.row

    def spawns(self, seed: int, states: Mapping[str, StageState] | None = None) -> Iterator[Spawn]:
        """The actors of the start; ``states``: what those of the row go on from, by address."""
        return self.network.spawns(seed, states=states)

    def row_for(self, sentinel: Sentinel) -> tuple[str, ...]:
        """Whom a sentinel talks to, head first.

        Raises:
            RecipeError: it is to train a replica, or asks for an average of weights that nobody keeps.
        """
        self._refuse_missing_average(sentinel)
        if isinstance(sentinel, Training) and sentinel.replica is not None:
            raise _no_replica(sentinel.replica)
        return self.row

    def _refuse_missing_average(self, sentinel: Sentinel) -> None:
        if isinstance(sentinel, Evaluation) and sentinel.ema:
            self.require_average()

    def require_average(self) -> None:
        """Refuse what asks for an average of weights where no gate keeps one.

        Raises:
            RecipeError: none does.
        """
        if all(gate.ema is None or gate.optimizer is None for gate in self.network.gates):
            raise RecipeError(
                "there is no average of weights to be had: no gate that learns keeps one; give gates "
                "ema=0.999, as in Network.replacing(ema=0.999)"
            )

    @property
    def schedule(self) -> Schedule:
        """Of those who train; replicas have none."""
        return self.network.schedule if isinstance(self.network, Network) else ASYNC

    def place_beside(self, sentinel: Sentinel) -> str | None:
        """The actor whose place a sentinel shares; None leaves it with the process that attaches it."""
        return None

    def deal(
        self, sentinel: Training | Evaluation, replicas: tuple[int, ...], seed: int
    ) -> Sequence[Training | Evaluation]:
        """The sentinels that are attached for one."""
        return [sentinel]

    def by_gate(self, states: States) -> dict[str, dict[str, Tensor]]:
        """States of the row, by the address of the gate they are of."""
        return {address: dict(state) for address, state in states.items()}

    def clients_of(self, address: str) -> Iterator[str]:
        """The actors of the network that fetch from another, or bring it something."""
        return iter(())

    # ── changes of gates at work ─────────────────────────────────────────────────────────────────────

    def address_of(self, gate: str) -> str:
        """The address of a gate of the row, which may be called by its name.

        Raises:
            RecipeError: there is none, or not one alone.
        """
        named = [a for a, each in zip(self.row, self.network.gates, strict=True) if each.name == gate]
        found = [gate] if gate in self.row else named
        if len(found) != 1:
            there = "several are" if found else "none is"
            raise RecipeError(f"{there} called {gate!r}; the gates are {', '.join(self.row)}")
        return found[0]

    def gate_at(self, address: str) -> Gate:
        """The recipe of a gate, as it has become.

        Raises:
            RecipeError: it is gone.
        """
        if address not in self.row:
            raise RecipeError(f"{address} is not part of the row any more: {', '.join(self.row)}")
        return self._gates()[address]

    def newcomer(self, gate: Gate, seed: int, address: str | None = None) -> Spawn:
        """The actor of a gate that is to be part of the row, and is told its place there later.

        Args:
            gate: its recipe.
            seed: of the session.
            address: nobody's so far; a new one where that is not known.

        Raises:
            RecipeError: the gates are parts of one module's forward.
            SharedParameterError: it has a parameter of another gate.
        """
        address = address or free_address(self._addresses)
        self._addresses.add(address)
        self._newcomers[address] = gate
        network = with_gates(self._row_network, {address: gate, **self._gates()})
        return next(network.spawns(seed))

    def rearrange(self, row: Sequence[str]) -> None:
        """The row has other gates, of those that there are and of newcomers.

        Raises:
            RecipeError: there are none, or they are parts of one module's forward.
        """
        network = self._with(row)
        self._newcomers.clear()
        self.become(network)

    def become(self, network: Network) -> None:
        """The recipe is another, of a row with other gates."""
        self._before.append(self._row_network)
        self.network, self.row = network, network.row()

    def check(self, row: Sequence[str]) -> None:
        """Refuse a row that :meth:`rearrange` would refuse."""
        self._with(row)

    def _with(self, row: Sequence[str]) -> Network:
        known = self._gates() | self._newcomers
        return with_gates(self._row_network, {address: known[address] for address in row})

    def row_now(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """What has become of a row that there was."""
        return self.row

    def module(self, states: States) -> nn.Module:
        """The network as one plain module with states of the row, as it is or as it was."""
        past = (each for each in reversed(self._before) if set(each.row()) == states.keys())
        network = self.network if states.keys() == set(self.row) else next(past, self.network)
        return network.module(states)

    def _gates(self) -> dict[str, Gate]:
        return dict(zip(self.row, self.network.gates, strict=True))

    @property
    def _row_network(self) -> Network:
        assert isinstance(self.network, Network), "replicas refuse"
        return self.network

    def change(self, address: str, settings: Mapping[str, Any]) -> None:
        """A gate learns with other settings."""
        self.network = self._row_network.changed(address, settings)

    # ── replicas, of which a row has none ────────────────────────────────────────────────────────────

    @property
    def replicas(self) -> tuple[int, ...]:
        """The replicas that live."""
        return ()

    def replica_row(self, replica: int) -> tuple[str, ...]:
        """The addresses of a replica's gates, head first.

        Raises:
            RecipeError: there is none of that number.
        """
        raise _no_replica(replica)

    def replica_of(self, address: str) -> int | None:
        """The living replica that a gate is part of."""
        return next((r for r in self.replicas if address in self.replica_row(r)), None)

    def replica_spawns(self, replica: int, seed: int) -> Iterator[Spawn]:
        """The actors of one replica more.

        Raises:
            RecipeError: there can be none.
        """
        raise _no_replica(replica)

    def removed(self, replica: int, drained: bool) -> Iterator[tuple[str, Message]]:
        """Take a replica out: what is to be sent to whom.

        Args:
            replica: its number.
            drained: nothing of it is on its way to the shards, so that they need not watch out for it.
        """
        raise _no_replica(replica)


class ReplicaTopology(RowTopology):
    """A row of shards, and replicas of a row of gates that come and go.

    Who trains talks to a replica, all others to the shards.

    Args:
        downpour: the recipe.
    """

    def __init__(self, downpour: Downpour) -> None:
        super().__init__(downpour)
        self._downpour = downpour
        self._living = set(range(downpour.replicas))
        self._next = downpour.replicas
        self._lock = threading.Lock()

    def row_for(self, sentinel: Sentinel) -> tuple[str, ...]:
        """Whom a sentinel talks to: one that trains to a replica, all others to the shards.

        Raises:
            RecipeError: it trains, and nobody says which replica, or one that is not there; or as
                :meth:`RowTopology.row_for`.
        """
        self._refuse_missing_average(sentinel)
        if not isinstance(sentinel, Training):
            return self.row
        if sentinel.replica is None:
            raise RecipeError("which replica is it to train? Sentinel.train(…, replica=0)")
        if sentinel.replica not in self._living:
            known = ", ".join(map(str, self.replicas)) or "none"
            raise RecipeError(f"there is no replica {sentinel.replica!r}; there are {known}")
        return self.replica_row(sentinel.replica)

    def place_beside(self, sentinel: Sentinel) -> str | None:
        """A replica has its sentinels and their data with it: only pushes and fetches leave it."""
        return self.row_for(sentinel)[0] if isinstance(sentinel, Training) else None

    def deal(
        self, sentinel: Training | Evaluation, replicas: tuple[int, ...], seed: int
    ) -> Sequence[Training | Evaluation]:
        """One that trains becomes one for each of some replicas, if it does not say which.

        Each is named after its replica and has its part of the batches and samples.

        Raises:
            DataError: the batches cannot be dealt out.
            RecipeError: it is a stream.
        """
        if not isinstance(sentinel, Training) or sentinel.replica is not None:
            return [sentinel]
        if isinstance(sentinel, Streaming):
            raise RecipeError("a stream trains one row of gates, and no replicas: attach it to a Network")
        batches = as_batches(sentinel.batches, sentinel.batch_size, seed, pairs=sentinel.split is None)
        samples = None if sentinel.samples is None else math.ceil(sentinel.samples / len(replicas))
        common = replace(sentinel, samples=samples, dealt_to=replicas)
        name = sentinel.name or sentinel.role
        return [
            replace(common, batches=part, name=f"{name}-{replica}", replica=replica)
            for replica, part in zip(replicas, deal_data(batches, len(replicas)), strict=True)
        ]

    def by_gate(self, states: States) -> dict[str, dict[str, Tensor]]:
        """The master weights, by the address of the gate they are of."""
        return self._downpour.by_gate(states)

    def clients_of(self, address: str) -> Iterator[str]:
        """Of a shard its clients, the gates of all replicas; of a front, before them, its parts."""
        for i, (front, *parts) in enumerate(self._downpour.shards()):
            if address == front:
                yield from parts
            if address in (front, *parts) and self._downpour.shares(i):
                yield from (self.replica_row(replica)[i] for replica in self.replicas)

    def address_of(self, gate: str) -> str:
        """Refuse.

        Raises:
            RecipeError: the gates of replicas are not changed alone.
        """
        raise RecipeError("the gates of replicas cannot be changed while they train; those of a Network can")

    def row_now(self, row: tuple[str, ...]) -> tuple[str, ...]:
        """The same: shards and the gates of replicas stay where they are."""
        return row

    def module(self, states: States) -> nn.Module:
        """The master weights as one plain module."""
        return self.network.module(states)

    @property
    def replicas(self) -> tuple[int, ...]:
        """The replicas that live."""
        return tuple(sorted(self._living))

    def replica_row(self, replica: int) -> tuple[str, ...]:
        """The addresses of a replica's gates, head first."""
        return self._downpour.replica_row(replica)

    def new_replica(self) -> int:
        """The number of one replica more, never used before."""
        with self._lock:
            replica = self._next
            self._next += 1
        return replica

    def replica_spawns(self, replica: int, seed: int) -> Iterator[Spawn]:
        """The actors of one replica more, which lives from now on, in a replay too."""
        self._living.add(replica)
        return self._downpour.replica_spawns(replica, seed)

    def removed(self, replica: int, drained: bool) -> Iterator[tuple[str, Message]]:
        """Take a replica out: its gates end, and the shards keep nothing for it."""
        self._living.discard(replica)
        for gate, shards in zip(self.replica_row(replica), self._downpour.shards(), strict=True):
            yield gate, Close()
            for shard in shards:
                yield shard, Left(gate) if drained else Forget(gate)


def _no_replica(replica: int) -> RecipeError:
    return RecipeError(f"a Network has one row and no replica {replica}; a Downpour has replicas")


def topology_of(network: Network | Downpour) -> RowTopology:
    """What a recipe becomes when it runs."""
    return ReplicaTopology(network) if isinstance(network, Downpour) else RowTopology(network)
