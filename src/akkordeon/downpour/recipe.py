"""The recipe of Downpour: replicas of a row of gates, and a row of shards that holds the master weights.

replica/0/gate/0 ⇄ replica/0/gate/1     each trained by a sentinel with data of its own
⇅                  ⇅
shard/0            shard/1          cuts, evaluations and checkpoints: the master weights
⇅                  ⇅
replica/1/gate/0 ⇄ replica/1/gate/1

A position may have several shards (split_shard.py); the row of shards then has all of them, the front of each
position before its parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from akkordeon.core.actor import Actor, Spawn
from akkordeon.core.addresses import shard_address
from akkordeon.core.checks import require_whole
from akkordeon.core.errors import RecipeError
from akkordeon.core.plain_state import StageState
from akkordeon.core.schedules import ASYNC
from akkordeon.downpour.replica_gate import ReplicaGate, writes_sentence
from akkordeon.downpour.shard import ParameterShard, ShardActor, SplitRole, WeightIndices
from akkordeon.downpour.split_shard import FrontRole, PartRole, divide_weights, part_of
from akkordeon.downpour.sync_policy import SyncPolicy
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.learning.optimizer import OptimizerFactory
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.recovery.recipe import Recovery
from akkordeon.pipeline.stage import Position
from akkordeon.pipeline.staleness.kept_weights import Stash
from akkordeon.pipeline.staleness.rule import Rule

__all__ = ["Downpour"]

ADAGRAD: OptimizerFactory = partial(torch.optim.Adagrad, lr=0.01)
"""What DistBelief's servers do: η_i = γ/√(Σ g_i²), for each parameter i. Its γ is not in the paper."""


@dataclass(frozen=True)
class Downpour:
    """Downpour SGD (Dean et al. 2012), and by other settings local SGD (DiLoCo, arXiv:2311.08105).

    Nobody waits for anybody: replicas push when they have something to push, shards apply it as it comes.
    With ``push="differences"``, ``push_every=H`` and an outer Nesterov optimizer it is local SGD, with one
    replica, ``push_every=1`` and ``fetch="wait"`` the plain loop; see docs/downpour.md.

    Args:
        network: the row that is replicated. Its optimizers make the local steps.
        replicas: how many at the start; more can join and leave later.
        push_every: local steps between two pushes of a gate to its shard.
        fetch_every: local steps between two fetches; with each push if None.
        server_optimizer: what shards apply pushes with, built as a gate's. It gets sums, not means: as
            Adagrad divides by what it has seen, do not divide as well.
        staleness: the rule of the shards; τ is the pushes applied since the pusher fetched.
        max_staleness: pushes older than so many updates are dropped and counted; None takes any.
        warm_start: so many pushes of one replica are applied before the others begin.
        fetch: ``"background"``: work goes on with old weights until the new ones are there.
            ``"wait"``: the next forward waits for them.
        local_step: whether replicas make local steps with the network's own optimizers.
        push: ``"gradients"`` sums them; ``"differences"`` is how far the weights have come.
        steps_by_speed: slower replicas push after fewer steps, the fastest every ``push_every``
            (dynamic local updates, arXiv:2401.09135).
        compression: of pushes: None, ``"bf16"`` or ``"int8"``, with error feedback.
        fetch_compression: of fetched weights, likewise: after the first they come as differences from what
            the replica has, of which its shard keeps a copy.
        max_shard_bytes: a position whose trainable weights weigh more is split over several shards, each
            with an optimizer of its own; a single tensor is never cut. None has one shard for each.

    Raises:
        RecipeError: a number out of range, or settings that contradict each other.
    """

    network: Network
    replicas: int = 2
    push_every: int = 1
    fetch_every: int | None = None
    server_optimizer: OptimizerFactory = ADAGRAD
    staleness: Rule = field(default_factory=Stash)
    max_staleness: int | None = None
    warm_start: int = 0
    fetch: Literal["background", "wait"] = "background"
    local_step: bool = True
    push: Literal["gradients", "differences"] = "gradients"
    steps_by_speed: bool = False
    compression: Literal["bf16", "int8"] | None = None
    fetch_compression: Literal["bf16", "int8"] | None = None
    max_shard_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what could only fail later, or go wrong silently."""
        if not isinstance(self.network, Network):
            raise RecipeError(f"Downpour replicates a Network, got {type(self.network).__name__}")
        if self.fetch not in ("background", "wait"):
            raise RecipeError(f"fetch is 'background' or 'wait', got {self.fetch!r}")
        if self.push not in ("gradients", "differences"):
            raise RecipeError(f"push is 'gradients' or 'differences', got {self.push!r}")
        require_whole("replicas", self.replicas)
        require_whole("warm_start", self.warm_start, 0)
        require_whole("max_staleness", self.max_staleness, 0, optional=True)
        require_whole("max_shard_bytes", self.max_shard_bytes, optional=True)
        if not isinstance(self.staleness, Rule):
            raise RecipeError(f"staleness is a rule such as Stash(), got {self.staleness!r}")
        if not callable(self.server_optimizer):
            raise RecipeError("server_optimizer is a function from parameters to an optimizer")
        self._check_rules(self.sync_policy)
        if self.network.clip_whole_norm is not None:
            raise RecipeError(
                f"the network has clip_whole_norm={self.network.clip_whole_norm}, and what is pushed is each "
                "gate's own, which nobody adds up; give the gates a clip_norm each instead"
            )
        if self.network.schedule != ASYNC:
            raise RecipeError(
                f"the network has the schedule {self.network.schedule}; replicas train without one, and with "
                "warm_start instead of a warm_up"
            )
        for i, gate in enumerate(self.network.gates):
            self._check_module(i, gate.module)
            if gate.schedule_by == "samples":
                raise RecipeError(
                    f"gate {i} has schedule_by='samples', and the gates of replicas count their own updates "
                    "alone; leave it out"
                )
            if gate.diagnose_every is not None:
                raise RecipeError(
                    f"gate {i} has diagnose_every={gate.diagnose_every}, and the gates of replicas measure "
                    "nothing, as staleness that counts is that of pushes; leave it out"
                )
            if gate.accumulate > 1:
                raise RecipeError(
                    f"gate {i} has accumulate={gate.accumulate}, and the gates of replicas step with every "
                    "batch; to have pushes of several, say push_every=… and local_step=False instead"
                )
            if gate.ema is not None and self.max_shard_bytes is not None:
                raise RecipeError(
                    f"gate {i} has ema={gate.ema}, and a position on several shards keeps no average; leave "
                    "out ema, or max_shard_bytes"
                )

    def _check_module(self, i: int, module: nn.Module) -> None:
        for name, part in module.named_modules():
            if not isinstance(part, nn.Embedding | nn.EmbeddingBag) or part.max_norm is None:
                continue
            learns = part.weight.requires_grad
            if self.push != "differences" or not learns:
                why = writes_sentence(f"{name}.weight".lstrip("."), learns)
                raise RecipeError(f"gate {i} has an embedding with max_norm: {why}")

    def _check_rules(self, policy: SyncPolicy) -> None:
        for rule in (self.staleness, *(gate.staleness for gate in self.network.gates)):
            for has_it, why in (
                (rule.looks_ahead, "where these lead to is not known ahead"),
                (rule.looks_back, "where they were is not known from how they move"),
                (rule.is_vertical, "each gate of a replica is lent its own in its own time"),
            ):
                if has_it:
                    raise RecipeError(
                        f"replicas and shards cannot have staleness={rule}: their weights come from several, "
                        f"and {why}; take another rule"
                    )
        if self.staleness.uses_old_weights and (policy.local_step or policy.push_every > 1):
            raise RecipeError(
                f"{type(self.staleness).__name__} needs the weights a push was computed at, but shards know "
                "only what they lent: use push_every=1 and local_step=False with it"
            )
        if policy.differences and not all(gate.staleness.keeps_weights for gate in self.network.gates):
            raise RecipeError(
                "push='differences' needs gates that keep weights, as Stash() does and Latest() not"
            )

    @property
    def sync_policy(self) -> SyncPolicy:
        """When the gates of a replica push and fetch, and what they push."""
        return SyncPolicy(
            push_every=self.push_every,
            fetch_every=self.fetch_every,
            wait=self.fetch == "wait",
            local_step=self.local_step,
            differences=self.push == "differences",
            compression=self.compression,
            fetch_compression=self.fetch_compression,
        )

    # ── as a network ─────────────────────────────────────────────────────────────────────────────────

    @property
    def gates(self) -> Sequence[Gate]:
        """The gates of the row that is replicated."""
        return self.network.gates

    @property
    def max_in_flight(self) -> int:
        """Batches a gate holds at most."""
        return self.network.max_in_flight

    @property
    def recovery(self) -> Recovery | None:
        """How shards and gates of replicas come back, if they do."""
        return self.network.recovery

    def row(self) -> tuple[str, ...]:
        """The addresses of the shards, head first."""
        return tuple(itertools.chain(*self.shards()))

    def shards(self) -> list[tuple[str, ...]]:
        """The addresses of the shards of each position, head first: one, or its front and its parts."""
        return [(shard_address(i), *self._weights_of_parts(i)) for i in range(len(self.gates))]

    def _weights_of_parts(self, i: int) -> dict[str, WeightIndices]:
        """Which weights each part of a position holds, by address; empty where one shard holds them all."""
        gate = self.gates[i]
        if self.max_shard_bytes is None or gate.optimizer is None:
            return {}
        parts = divide_weights(gate.module, self.max_shard_bytes)
        return (
            {f"{shard_address(i)}.{n}": indices for n, indices in enumerate(parts, 1)}
            if len(parts) > 1
            else {}
        )

    def replica_row(self, replica: int) -> tuple[str, ...]:
        """The addresses of a replica's gates, head first."""
        return self.network.row(_prefix(replica))

    def spawns(self, seed: int, *, states: Mapping[str, StageState] | None = None) -> Iterator[Spawn]:
        """What an engine needs to make the shards and the replicas of the start.

        Args:
            seed: of the session.
            states: what shards go on from, by address; those not named begin with the recipe's weights.
        """
        yield from self._shard_spawns(seed, states or {})
        for replica in range(self.replicas):
            yield from self.replica_spawns(replica, seed)

    def _shard_spawns(self, seed: int, states: Mapping[str, StageState]) -> Iterator[Spawn]:
        previous = dict(zip(self.row(), (None, *self.row()), strict=False))
        for i, gate in enumerate(self.gates):
            front, parts, shard = shard_address(i), self._weights_of_parts(i), self._shard(gate)
            after = shard_address(i + 1) if i + 1 < len(self.gates) else None
            every = self.network.snapshot_every(gate)
            position = Position(front, i, previous[front], after, seed, snapshot_every=every)
            if parts:
                held = tuple(itertools.chain(*parts.values()))
                empty = replace(shard, optimizer=None, staleness=Stash(), held_elsewhere=held)
                yield self._shard_spawn(gate, empty, position, partial(FrontRole, parts), states)
            else:
                yield self._shard_spawn(gate, shard, position, None, states)
            for n, (address, indices) in enumerate(parts.items(), 1):
                name = None if gate.name is None else f"{gate.name}.{n}"
                part = replace(shard, module=part_of(gate.module, indices), warm_start=0, name=name)
                position = Position(address, i, previous[address], seed=seed, snapshot_every=every)
                yield self._shard_spawn(gate, part, position, partial(PartRole, front), states)

    def _shard_spawn(
        self,
        gate: Gate,
        shard: ParameterShard,
        position: Position,
        role: Callable[[ShardActor], SplitRole] | None,
        states: Mapping[str, StageState],
    ) -> Spawn:
        make = partial(ShardActor, shard, position, role)
        restore = partial(make, anew=True) if self.network.brings_back(gate) else None
        return Spawn(position.address, partial(make, states.get(position.address)), restore=restore)

    def _shard(self, gate: Gate) -> ParameterShard:
        return ParameterShard(
            module=gate.module,
            optimizer=None if gate.optimizer is None else self.server_optimizer,
            staleness=self.staleness,
            max_staleness=self.max_staleness,
            warm_start=self.warm_start,
            steps_by_speed=self.push_every if self.steps_by_speed else None,
            name=gate.name,
            device=gate.device,
            autocast=gate.autocast,
            compression=self.fetch_compression,
            ema=gate.ema,
        )

    def replica_spawns(self, replica: int, seed: int) -> Iterator[Spawn]:
        """What an engine needs to make one replica."""
        policy = self.sync_policy
        for position, gate in zip(self.network.positions(seed, _prefix(replica)), self.gates, strict=True):
            shard, parts = shard_address(position.index), self._weights_of_parts(position.index)
            own = replace(position, snapshot_every=None)  # it fetches what it goes on from
            make: Callable[..., Actor] = partial(ReplicaGate, gate, own, policy, shard, parts)
            again = make
            if not self.shares(position.index):
                make, again = partial(GateActor, gate, own), partial(GateActor, gate, own, anew=True)
            restore = again if self.network.brings_back(gate) else None
            yield Spawn(position.address, make, gate.resources, restore)

    def shares(self, i: int) -> bool:
        """Whether the gates of a position bring anything to their shard."""
        gate = self.gates[i]
        return gate.optimizer is not None or next(gate.module.buffers(), None) is not None

    def module(self, states: Mapping[str, Mapping[str, Tensor]] | None = None) -> nn.Module:
        """The gates as one plain module, copied; see :meth:`Network.module`.

        Args:
            states: weights and buffers by address, of shards or of the gates they stand for, and name in
                the module; the recipe's if not given.
        """
        if states is None or states.keys() == set(self.network.row()):
            return self.network.module(states)
        return self.network.module(self.by_gate(states))

    def by_gate(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """What all shards of a position have, as far as it is there, by the address of their gate."""
        return {
            gate: {name: tensor for shard in shards for name, tensor in states.get(shard, {}).items()}
            for gate, shards in zip(self.network.row(), self.shards(), strict=True)
        }


def _prefix(replica: int) -> str:
    return f"replica/{replica}/"
