"""Runs a layout dry: actors that keep to the protocol, costs instead of tensors, virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from akkordeon.core.actor import Spawn
from akkordeon.core.messages import Attach
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.engine import Simulator
from akkordeon.engines.simulator.hosts import Host
from akkordeon.experiments.planning.costs import ModelCosts
from akkordeon.experiments.planning.layouts import RunLayout
from akkordeon.experiments.planning.machines import Machine, Machines
from akkordeon.experiments.schedules.dry_actors import DryRow

__all__ = ["Forecast", "dry_run"]

WARM_BATCHES = 20
MEASURED_BATCHES = 100
"""How long a dry run lasts: so many times what a batch takes that is alone."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a layout would give.

    Args:
        layout: that was run dry.
        samples_per_s: trained.
        staleness: mean τ of all updates.
        memory_bytes: that weights, optimizers and batches in flight need, by host.
        bytes_per_sample: over links between hosts.
        fits: whether every host has the memory that it needs.
    """

    layout: RunLayout
    samples_per_s: float
    staleness: float
    memory_bytes: Mapping[str, int]
    bytes_per_sample: float
    fits: bool = True


def dry_run(layout: RunLayout, costs: ModelCosts, machines: Machines) -> Forecast:
    """What a layout would give on these machines.

    It is run twice: what workers of a host cost each other depends on how many are at work, which the first
    run shows.
    """
    first = _Run(layout, costs, machines, {})
    return _Run(layout, costs, machines, first.busy).forecast()


class _Run:
    """One dry run.

    Args:
        layout: of the row.
        costs: of the model.
        machines: where it runs.
        busy: mean number of workers at work, by host.
    """

    def __init__(
        self, layout: RunLayout, costs: ModelCosts, machines: Machines, busy: Mapping[str, float]
    ) -> None:
        self._layout, self._costs = layout, costs
        self._hosts = {host.name: host for host in machines.hosts if host.name in layout.placement}
        self._row = DryRow()
        self._where = self._placed()
        self._engine = Simulator(
            links=machines.links,
            compute=Compute(self._costs_by_address(busy)),
            hosts=[self._host(host) for host in self._hosts.values()],
        )
        self._engine.start(lambda record: None, 0)
        try:
            self._go()
        finally:
            self._engine.stop()

    def _placed(self) -> dict[str, str]:
        """The host of every actor; a trainer is beside the last gate, where its losses are."""
        placement = self._layout.placement
        gates = {f"gate/{i}": name for i, name in enumerate(placement)}
        return {**gates, "sentinel/0": placement[-1]}

    def _host(self, host: Machine) -> Host:
        actors = [address for address, name in self._where.items() if name == host.name]
        return Host(host.name, actors, host.cores)

    def _costs_by_address(self, busy: Mapping[str, float]) -> dict[str, Cost]:
        slower = {
            name: self._crowding(busy.get(name, 1.0)) / host.speed for name, host in self._hosts.items()
        }
        starts = [0, *self._layout.ends[:-1]]
        gates = {
            f"gate/{i}": self._costs.gate(start, end, slower[self._where[f"gate/{i}"]])
            for i, (start, end) in enumerate(zip(starts, self._layout.ends, strict=True))
        }
        return {**gates, "sentinel/0": self._costs.sentinel(slower[self._where["sentinel/0"]])}

    def _crowding(self, busy: float) -> float:
        """How many times longer work takes while so many workers are at it."""
        others = max(1, self._costs.workers - 1)
        return 1 + (self._costs.crowding - 1) * max(0.0, busy - 1) / others

    def _go(self) -> None:
        self._spawn()
        self._engine.send("sentinel/0", Attach())
        batch_s = self._costs.batch_s / min(host.speed for host in self._hosts.values())
        self._engine.wait_until(lambda: False, WARM_BATCHES * batch_s)
        began_s, before = self._engine.now_s(), self._row.trained
        bytes_before = self._bytes_sent()
        self._engine.wait_until(lambda: False, MEASURED_BATCHES * batch_s)
        self.seconds = self._engine.now_s() - began_s
        self.trained = self._row.trained - before
        self.bytes_sent = self._bytes_sent() - bytes_before
        self.busy = self._mean_busy()

    def _spawn(self) -> None:
        ends, blocks, engine = self._layout.ends, self._costs.blocks, self._engine
        row = tuple(f"gate/{i}" for i in range(len(ends)))
        for i, (start, end) in enumerate(zip((0, *ends), ends, strict=False)):
            previous, following = row[i - 1] if i else None, row[i + 1] if i + 1 < len(row) else None
            sizes = blocks[end - 1].output_bytes, blocks[start].gradient_bytes
            engine.spawn(Spawn(row[i], partial(self._row.gate, row[i], previous, following, *sizes)))
        sizes = self._costs.input_bytes, blocks[-1].output_bytes
        arguments = "sentinel/0", row, self._layout.in_flight, None, *sizes
        engine.spawn(Spawn("sentinel/0", partial(self._row.trainer, *arguments)))

    def _bytes_sent(self) -> int:
        return sum(wire.bytes for _, _, wire in self._engine.wires())

    def _mean_busy(self) -> dict[str, float]:
        loads, now_s = self._engine.loads(), self._engine.now_s()
        busy: Counter[str] = Counter()
        for address, name in self._where.items():
            busy[name] += loads[address].busy_s / now_s  # type: ignore[assignment]  # a sum of shares
        return dict(busy)

    def forecast(self) -> Forecast:
        """What it came to."""
        memory = self._memory_bytes()
        samples = self.trained * self._costs.samples
        return Forecast(
            layout=self._layout,
            samples_per_s=samples / self.seconds,
            staleness=self._mean_staleness(),
            memory_bytes=memory,
            bytes_per_sample=self.bytes_sent / samples if samples else 0.0,
            fits=all(self._fits(self._hosts[name], size) for name, size in memory.items()),
        )

    def _mean_staleness(self) -> float:
        seen: Counter[int] = sum((gate.staleness_seen for gate in self._row.gates.values()), Counter())
        return sum(tau * n for tau, n in seen.items()) / max(1, seen.total())

    def _memory_bytes(self) -> dict[str, int]:
        """Weights, a gradient, what optimizers keep; for every batch in flight what it saved and stashed."""
        memory: Counter[str] = Counter()
        ends = self._layout.ends
        for i, (start, end) in enumerate(zip((0, *ends), ends, strict=False)):
            seen = self._row.gates[f"gate/{i}"].staleness_seen
            stale = max(seen, default=0)
            for block in self._costs.blocks[start:end]:
                batches = (1 + stale) * block.saved_bytes
                weights = (2 + stale) * block.weight_bytes + block.state_bytes
                memory[self._where[f"gate/{i}"]] += batches + weights
        return dict(memory)

    @staticmethod
    def _fits(host: Machine, size: int) -> bool:
        return host.memory_gb is None or size <= host.memory_gb * 1e9
