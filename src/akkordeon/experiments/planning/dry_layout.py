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
from akkordeon.experiments.planning.machines import MessageCost
from akkordeon.experiments.schedules.dry_actors import DryGate, DryTrainer

__all__ = ["DryLayout"]

FREE = MessageCost(ms=0, ms_per_mb=0)
"""On threads, which a layout on one host runs on."""

SESSION = None
"""The process of a row's trainer; gates on one host share one, and so does a replica with its trainer."""


class DryLayout:
    """The actors of a layout.

    Args:
        layout: of the model.
        costs: of the model.
        message: what it costs each end to send it from process to process.

    Attributes:
        where: the host of every actor, by address. The trainer of a row is on its first host, as if the
            session were there; a replica's is with it.
        costs: of every actor on a core of speed 1, by address.
        gates: as they are made.
        shards: likewise.
        trainers: likewise.
    """

    def __init__(self, layout: RunLayout, costs: ModelCosts, message: MessageCost) -> None:
        self._layout, self._model = layout, costs
        self._message = message if len(layout.hosts) > 1 else FREE
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
        self.where[address], self.costs[address] = hosts[0], self._trainer_cost(hosts)
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
            every, push_bytes = self._layout.push_every, self._push_bytes(i)
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
        forward_s += sum(block.forward_s for block in blocks)
        backward_s += sum(block.backward_s for block in blocks)
        if self._layout.push_every is not None:
            pushes = [block.push(self._layout.compression) for block in blocks]
            pushing_s = sum(push.push_s for push in pushes) + self._message.ends_s(self._push_bytes(i))
            update_s += pushing_s / self._layout.push_every
            fetching_s = sum(push.fetch_s for push in pushes) + self._message.ends_s(self._weight_bytes(i))
            table = {"Parameters": (fetching_s, 0.0)}
        else:
            before, here, after = (SESSION, *hosts, SESSION)[i : i + 3]
            forward_s += self._end_s(self._output(i - 1), before, here)
            forward_s += self._sending_s(self._output(i), here, after)
            backward_s += self._end_s(self._gradient(i + 1), after, here)
            backward_s += self._sending_s(self._gradient(i), here, before)
        return Cost(table={"Forward": (forward_s, 0.0), "Backward": (backward_s, update_s), **table})

    def _trainer_cost(self, hosts: Sequence[str]) -> Cost:
        (loss_s, rest_s), next_s = self._model.sentinel_s, 0.0
        if not self._layout.replicas:
            first, last, gates = hosts[0], hosts[-1], len(hosts)
            loss_s += self._end_s(self._output(gates - 1), last, SESSION)
            loss_s += self._sending_s(self._gradient(gates), SESSION, last)
            next_s += self._end_s(self._gradient(0), first, SESSION)
            next_s += self._sending_s(self._output(-1), SESSION, first)
        return Cost(forward_s=loss_s, backward_s=next_s, update_s=rest_s)

    def _output(self, i: int) -> Sent:
        """What a gate sends on; what is sent to the first for -1."""
        return self._blocks[i][-1].output if i >= 0 else self._model.inputs

    def _gradient(self, i: int) -> Sent:
        """What a gate sends back; that of the outputs, which the trainer does, for as many as there are."""
        return self._blocks[i][0].gradient if i < len(self._blocks) else self._blocks[-1][-1].output

    def _end_s(self, sent: Sent, sender: str | None, receiver: str | None) -> float:
        """What it costs one end of a message from process to process."""
        return self._message.ends_s(sent.size(self._layout.int8)) if sender != receiver else 0.0

    def _sending_s(self, sent: Sent, sender: str | None, receiver: str | None) -> float:
        """Likewise, with narrowing it, all of which the sender does."""
        narrows = self._layout.int8 and len(self._layout.hosts) > 1 and sender != receiver
        return self._end_s(sent, sender, receiver) + (sent.int8_s if narrows else 0.0)

    def _push_bytes(self, i: int) -> int:
        return sum(block.push(self._layout.compression).push_bytes for block in self._blocks[i])

    def _weight_bytes(self, i: int) -> int:
        return sum(block.weight_bytes for block in self._blocks[i])

    def _shard(self, i: int, host: str) -> Spawn:
        address, weight_bytes = shard_address(i), self._weight_bytes(i)
        apply_s = sum(block.push(self._layout.compression).apply_s for block in self._blocks[i])
        # A push is answered once, by weights that are sent at once or are fetched after those that are late.
        table = {
            "Push": (apply_s + self._message.ends_s(self._push_bytes(i), weight_bytes), 0.0),
            "Fetch": (self._message.ends_s(0), 0.0),
        }
        self.where[address], self.costs[address] = host, Cost(table=table)
        return Spawn(address, partial(self._make_shard, address, weight_bytes))

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
