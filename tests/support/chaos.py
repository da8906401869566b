"""Worlds in which gates, shards, replicas, sentinels and whole hosts crash and come back, drawn from a seed.

The simulator runs a world with real gradients, a :class:`Witness` looks on, and :func:`violations` says what
did not hold: accounting at every moment, no batch learned from twice, no version that goes back, nobody who
hangs, nothing that is left behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import Send
from akkordeon.core.errors import ActorFailedError, GateFailedError, WaitTimeoutError
from akkordeon.core.messages import Backward, Forward
from akkordeon.core.recovery.reports import StageSaved
from akkordeon.core.reports import ActorLost, GateRestarted, GateStatus
from akkordeon.downpour.replica_gate import ReplicaGate
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.distributions import Uniform
from akkordeon.engines.simulator.faults import Crash, Freeze, Partition
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import Link
from akkordeon.pipeline.stage import Stage
from akkordeon.sentinels.training.trainer import Trainer

SIDES = [("sentinel/*", "*gate/*"), ("*gate/0", "*gate/1"), ("rack", "*")]
"""Who is cut off from whom."""

BOREDOM_S = 300.0
"""Virtual seconds after which a world of some hundred messages hangs."""


@dataclass
class Seen:
    """What worlds were made of."""

    faults: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    repeated: int = 0
    batches: int = 0
    lost: int = 0


@dataclass
class World:
    """Everything that one run depends on."""

    recipe: ak.Network | ak.Downpour
    trainers: list[ak.Sentinel]
    others: list[tuple[float, ak.Sentinel]]
    engine: ak.Simulator
    exact_versions: bool


def world_of(seed: int, *, scheduled: bool = False) -> World:
    """The world of a seed; ``scheduled``: of a row of gates with a schedule."""
    rng = Random(seed)
    gates = rng.randint(1, 4)
    row = [f"gate/{i}" for i in range(gates)]
    every = rng.choice([1, 3, 10, 0.05, 0.3])
    recovery = ak.Recovery(snapshot_every=every, restarts=rng.choice([2, 99, 99, 99]), backoff_s=0.02)
    network = ak.Network([ak.Gate(nn.Linear(2, 2), _sgd) for _ in range(gates)], recovery=recovery)
    recipe: ak.Network | ak.Downpour = network
    if scheduled:
        schedule, batches = rng.choice([ak.Flush, ak.TwoBuffers]), rng.randint(1, 4)
        recipe = replace(network, schedule=schedule(batches))
    elif rng.random() < 0.5:
        recipe = ak.Downpour(
            network,
            replicas=rng.randint(1, 3),
            push_every=rng.randint(1, 3),
            fetch=rng.choice(["background", "wait"]),
            warm_start=rng.choice([0, 0, 4]),
            push=rng.choice(["gradients", "differences"]),
            max_shard_bytes=rng.choice([None, 8]),
            server_optimizer=_sgd,
        )
    rows = list(recipe.row())
    if isinstance(recipe, ak.Downpour):
        rows += [address for r in range(recipe.replicas) for address in recipe.replica_row(r)]
    hosts = [Host("rack", rng.sample(rows, rng.randint(1, len(rows))), cores=rng.choice([None, 1, 2]))]
    keeps = Random(f"{seed} keeps").random() < 0.3
    keeper = ak.Sentinel.checkpoint(every_updates=4, name="c")
    who = [*rows, *rows, "rack", "sentinel/t0*", "sentinel/v*", "reader/t0*", "sentinel/p*"]
    return World(
        recipe,
        trainers=[_trainer(rng, i) for i in range(rng.randint(1, 3))],
        others=[_other(rng, i) for i in range(rng.randint(0, 3))] + [(0.0, keeper)] * keeps,
        engine=ak.Simulator(
            seed,
            links=Link(Uniform(0.0, rng.choice([0.0, 0.01, 0.05]))),
            compute=Compute({"*": Cost(message_s=0.005)}, spread=Uniform(0.5, 3.0)),
            faults=_repeating(
                Random(f"{seed} again"), [_fault(rng, who, row) for _ in range(rng.randint(1, 4))]
            ),
            hosts=hosts if rng.random() < 0.5 else (),
        ),
        exact_versions=isinstance(every, int),
    )


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9)


def _batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.ones(1, 2), torch.tensor([0])) for _ in range(n)]


def _trainer(rng: Random, i: int) -> ak.Sentinel:
    batches, in_flight = _batches(rng.randint(3, 25)), rng.randint(1, 5)
    return ak.Sentinel.train(batches, F.cross_entropy, in_flight=in_flight, name=f"t{i}")


def _other(rng: Random, i: int) -> tuple[float, ak.Sentinel]:
    if rng.random() < 0.5:
        return rng.uniform(0, 1), ak.Sentinel.predict(torch.ones(3, 2), batch_size=1, name=f"p{i}")
    validator = ak.Sentinel.validate(
        _batches(2), F.cross_entropy, every_updates=rng.randint(1, 5), name=f"v{i}"
    )
    return 0.0, validator


def _fault(rng: Random, who: list[str], row: list[str]) -> Any:
    at_s, kind = rng.uniform(0, 2), rng.random()
    if kind < 0.7:
        return Crash(who=rng.choice(who), at_s=at_s, back_after_s=rng.choice([None, 0.0, 0.1, 1.0]))
    if kind < 0.85:
        return Freeze(who=rng.choice(who), at_s=at_s, for_s=rng.uniform(0, 1))
    one, other = rng.choice(SIDES)
    return Partition(
        one=one, other=other, at_s=at_s, heal_after_s=rng.uniform(0, 2), patience_s=rng.choice([0.5, 30.0])
    )


def _repeating(rng: Random, faults: list[Any]) -> list[Any]:
    """The faults, of which some have messages arrive again, and maybe some links that break for a moment."""
    for i, fault in enumerate(faults):
        if isinstance(fault, Partition):
            faults[i] = replace(fault, again_s=rng.choice([0.0, 0.1, 1.0]))
    for _ in range(rng.choice([0, 0, 1, 3])):
        one, other = rng.choice([*SIDES, ("*gate/*", "shard/*"), ("*", "*")])
        at_s, heal_after_s, again_s = rng.uniform(0, 2), rng.choice([0.0, 0.05]), rng.uniform(0, 0.5)
        faults.append(Partition(one=one, other=other, at_s=at_s, heal_after_s=heal_after_s, again_s=again_s))
    return faults


class Witness:
    """Sees every message handled, what came of it, and every report."""

    def __init__(self, exact_versions: bool) -> None:
        self.violations: list[str] = []
        self.restarts = 0
        self._exact_versions = exact_versions
        self._inputs: dict[Any, Any] = {}  # by batch; held, so that no other has its identity
        self._learned: set[tuple[str, int]] = set()
        self._versions: Counter[str] = Counter()

    def listen(self, actor: Any, message: Any, now_s: float) -> Iterator[Any]:
        address = actor.address
        for effect in actor.receive(message, now_s):
            if isinstance(effect, Send):
                self._see(actor, address, effect.message)
            yield effect
        if isinstance(actor, Trainer) and actor.batches.in_flight != len(actor._flights):
            self.violations.append(f"{address} has {actor.batches} with {len(actor._flights)} in flight")
        if self._exact_versions and isinstance(actor, Stage) and not isinstance(actor, ReplicaGate):
            self._see_version(address, actor.version)

    def _see(self, actor: Any, address: str, message: Any) -> None:
        if isinstance(actor, Trainer) and isinstance(message, Forward):
            self._inputs[message.batch] = message.payload
        if isinstance(actor, Stage) and isinstance(message, Backward):
            learned = address, id(self._inputs[message.batch])
            if learned in self._learned:
                self.violations.append(f"{address} learned twice from {message.batch}")
            self._learned.add(learned)

    def hear(self, record: Any) -> None:
        if isinstance(record, GateRestarted):
            self.restarts += 1
            if not record.address.startswith("replica"):
                self._see_version(record.address, record.version_after)
        elif isinstance(record, GateStatus) and not record.address.startswith("replica"):
            self._see_version(record.address, record.version)
        elif isinstance(record, StageSaved):
            self.violations.append("a watcher was told of a snapshot")

    def _see_version(self, address: str, version: int) -> None:
        if version < self._versions[address]:
            self.violations.append(f"{address} went back from {self._versions[address]} to {version}")
        self._versions[address] = version


def violations(seed: int, seen: Seen | None = None, *, scheduled: bool = False) -> list[str]:
    """Run the world of a seed; what did not hold in it."""
    world = world_of(seed, scheduled=scheduled)
    witness = Witness(world.exact_versions)
    session = ak.run(world.recipe, engine=world.engine)
    world.engine.recorder = witness  # type: ignore[assignment]
    session.subscribe(witness.hear, inline=True)
    lost: Counter[str] = Counter()
    session.subscribe(
        lambda r: lost.update([_kind(r.address)] if isinstance(r, ActorLost) else []), inline=True
    )
    try:
        found = _live(world, session)
        if session._error is None:
            found += _rest(session)
    except GateFailedError as error:
        found = [] if "the most allowed" in str(error) else [f"a gate failed: {error}"]
    finally:
        repeated = world.engine.repeated()
        session.close()
    if seen is not None:
        seen.faults.update(lost)
        seen.faults.update(type(fault).__name__ for fault in world.engine._faults)
        seen.restarts += witness.restarts
        seen.repeated += repeated
        seen.batches += sum(a.batches.sent for a in session.attachments)
        seen.lost += sum(a.batches.lost for a in session.attachments)
    return witness.violations + found + _sums(session)


def _kind(address: str) -> str:
    return "lost: " + address.partition("/")[0]


def _live(world: World, session: Any) -> list[str]:
    for sentinel in world.trainers:
        session.attach(sentinel)
    for at_s, sentinel in sorted(world.others, key=lambda other: other[0]):
        world.engine.wait_until(lambda: False, max(0.0, at_s - world.engine.now_s()))
        session.attach(sentinel)
    try:
        session.wait(timeout=BOREDOM_S)
    except WaitTimeoutError as error:
        return [f"something hangs: {error}"]
    except GateFailedError:
        if session._error is None:  # of one replica alone
            return []
        raise
    except ActorFailedError as error:
        return [] if "is lost" in str(error) else [f"a sentinel failed: {error}"]
    return []


def _rest(session: Any) -> list[str]:
    """What must hold of the gates once everything has ended and every message has arrived."""
    session._engine.wait_until(lambda: session._error is not None, BOREDOM_S)
    if session._error is not None:
        return []
    found = []
    for address, cell in session._engine._cells.items():
        if isinstance(cell.actor, Stage) and (cell.actor.stash or cell.actor.pins):
            found.append(f"{address} keeps {len(cell.actor.stash)} batches, {len(cell.actor.pins)} cuts")
    return found


def _sums(session: Any) -> list[str]:
    found = []
    for attachment in session.attachments:
        batches = attachment.batches
        if not attachment.ended:
            found.append(f"{attachment.name} has not ended with its session")
        if batches.in_flight:
            found.append(f"{attachment.name} ended with {batches}")
        whole = attachment.role == "predict" and attachment.error is None and session._error is None
        if whole and (attachment.result is None or attachment.result.shape != (3, 2)):
            found.append(f"{attachment.name} predicted {attachment.result}")
    return found
