"""A layout as actors that compute nothing: what each is made of, what it costs, and on which host it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from akkordeon.core.actor import Spawn
from akkordeon.core.addresses import shard_address
from akkordeon.engines.simulator.compute import Cost
from akkordeon.experiments.planning.costs import BlockCost, ModelCosts, Sent
from akkordeon.experiments.planning.dry_replicas import DryReplicaGate, DryShard
from akkordeon.experiments.planning.layouts import RunLayout
from akkordeon.experiments.schedules.dry_actors import DryGate, DryTrainer

__all__ = ["DryLayout"]


class DryLayout:
    """The actors of a layout.

    Args:
        layout: of the model.
        costs: of the model.

    Attributes:
        where: the host of every actor, by address. Trainers are beside the last gate, where the losses are.
        costs: of every actor on a core of speed 1, by address.
        gates: as they are made.
        shards: likewise.
        trainers: likewise.
    """

    def __init__(self, layout: RunLayout, costs: ModelCosts) -> None:
        self._layout, self._model = layout, costs
        self._blocks = [
            costs.blocks[start:end] for start, end in zip(layout.starts, layout.ends, strict=True)
        ]
        self.where: dict[str, str] = {}
        self.costs: dict[str, Cost] = {}
        self.gates: dict[str, DryGate] = {}
        self.shards: dict[str, DryShard] = {}
        self.trainers: dict[str, DryTrainer] = {}

    @property
    def trained(self) -> int:
        """Batches so far."""
        return sum(trainer.batches.trained for trainer in self.trainers.values())

    @property
    def latest_s(self) -> float:
        """When a batch last came back to a trainer."""
        return max(trainer.latest_s for trainer in self.trainers.values())

    def spawns(self) -> Iterator[Spawn]:
        """What an engine needs to make them all."""
        for i, host in enumerate(self._layout.shard_hosts):
            yield self._shard(i, host)
        for number, hosts in enumerate(self._layout.placement):
            yield from self._row(number, hosts)

    def _row(self, number: int, hosts: tuple[str, ...]) -> Iterator[Spawn]:
        prefix = f"replica/{number}/" if self._layout.replicas else ""
        row = tuple(f"{prefix}gate/{i}" for i in range(len(hosts)))
        for i, (address, host) in enumerate(zip(row, hosts, strict=True)):
            self.where[address], self.costs[address] = host, self._gate_cost(i, hosts)
            yield Spawn(address, partial(self._make_gate, i, row))
        address = f"sentinel/{number}"
        loss_s, rest_s = self._model.sentinel_s
        rest_s += self._narrowing_s(self._model.inputs, hosts[-1], hosts[0])
        self.where[address], self.costs[address] = hosts[-1], Cost(forward_s=loss_s, update_s=rest_s)
        yield Spawn(address, partial(self._make_trainer, address, row))

    def _make_gate(self, i: int, row: tuple[str, ...]) -> DryGate:
        blocks, previous = self._blocks[i], row[i - 1] if i else None
        following = row[i + 1] if i + 1 < len(row) else None
        int8 = self._layout.int8
        sizes = blocks[-1].output.size(int8), blocks[0].gradient.size(int8)
        arguments = row[i], previous, following, *sizes
        if self._layout.push_every is None:
            gate = DryGate(*arguments, self._layout.micro_batches)
        else:
            push_bytes = sum(block.push(self._layout.compression).push_bytes for block in blocks)
            every = self._layout.push_every
            gate = DryReplicaGate(*arguments, shard=shard_address(i), push_every=every, push_bytes=push_bytes)
        self.gates[row[i]] = gate
        return gate

    def _make_trainer(self, address: str, row: tuple[str, ...]) -> DryTrainer:
        int8 = self._layout.int8
        sizes = self._model.inputs.size(int8), self._model.blocks[-1].output.size(int8)
        in_flight, waits = self._layout.in_flight, self._layout.waits
        trainer = self.trainers[address] = DryTrainer(address, row, in_flight, None, *sizes, waits)
        return trainer

    def _gate_cost(self, i: int, hosts: Sequence[str]) -> Cost:
        blocks, (forward_s, backward_s) = self._blocks[i], self._model.gate_s
        update_s, table = sum(block.update_s for block in blocks) / self._layout.micro_batches, {}
        if self._layout.push_every is not None:
            pushes = [block.push(self._layout.compression) for block in blocks]
            update_s += sum(push.push_s for push in pushes) / self._layout.push_every
            table = {"Parameters": (sum(push.fetch_s for push in pushes), 0.0)}
        forward_s += sum(block.forward_s for block in blocks)
        forward_s += self._narrowing_s(blocks[-1].output, *hosts[i : i + 2])
        backward_s += sum(block.backward_s for block in blocks)
        backward_s += self._narrowing_s(blocks[0].gradient, *hosts[max(0, i - 1) : i + 1])
        whole = {"Forward": (forward_s, 0.0), "Backward": (backward_s, update_s), **table}
        return Cost(table=whole)

    def _narrowing_s(self, sent: Sent, *between: str) -> float:
        """What it takes where hosts differ; all of it at the sender."""
        return sent.int8_s if self._layout.int8 and len(set(between)) > 1 else 0.0

    def _shard(self, i: int, host: str) -> Spawn:
        address, blocks = shard_address(i), self._blocks[i]
        apply_s = sum(block.push(self._layout.compression).apply_s for block in blocks)
        self.where[address], self.costs[address] = host, Cost(table={"Push": (apply_s, 0.0)})
        return Spawn(address, partial(self._make_shard, address, sum(b.weight_bytes for b in blocks)))

    def _make_shard(self, address: str, weight_bytes: int) -> DryShard:
        shard = self.shards[address] = DryShard(address, weight_bytes)
        return shard

    # ── what it came to ──────────────────────────────────────────────────────────────────────────────

    def mean_staleness(self) -> float:
        """Of all updates, by the shards where there are any."""
        if self._layout.schedule == "2bw":  # by its definition; dry gates keep no weights to choose from
            return 1.0
        its = self.shards or self.gates
        seen: Counter[int] = sum((actor.staleness_seen for actor in its.values()), Counter())
        return sum(tau * n for tau, n in seen.items()) / max(1, seen.total())

    def memory_bytes(self) -> Mapping[str, int]:
        """By host: of gates and shards, with what batches in flight need."""
        memory: Counter[str] = Counter()
        for address, gate in self.gates.items():
            blocks = self._blocks[int(address.rpartition("/")[2])]
            memory[self.where[address]] += sum(self._gate_bytes(block, gate) for block in blocks)
        for address in self.shards:
            blocks = self._blocks[int(address.rpartition("/")[2])]
            memory[self.where[address]] += 2 * sum(block.weight_bytes for block in blocks)
        return dict(memory)

    def _gate_bytes(self, block: BlockCost, gate: DryGate) -> int:
        """Weights, a gradient, what the optimizer keeps; of each batch what it saved and the weights it had.

        A replica's also has what it gathers, and what packing lost. Where updates are waited for, a gate has
        what it gathers, and with two buffers the version before, but none for each batch.
        """
        if self._layout.schedule != "async":
            copies = 3 + (self._layout.schedule == "2bw")
            return gate.most_stashed * block.saved_bytes + copies * block.weight_bytes + block.state_bytes
        stale = max(gate.staleness_seen, default=0)
        more = 0 if not self._layout.replicas else 1 if self._layout.compression is None else 2
        weights = (2 + stale + more) * block.weight_bytes
        return (1 + stale) * block.saved_bytes + weights + block.state_bytes
