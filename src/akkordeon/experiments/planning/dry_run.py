"""Runs a layout dry: actors that keep to the protocol, costs instead of tensors, virtual time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from akkordeon.core.messages import Attach
from akkordeon.engines.simulator.compute import Compute, Cost
from akkordeon.engines.simulator.distributions import LogNormal
from akkordeon.engines.simulator.engine import Simulator
from akkordeon.engines.simulator.hosts import Host
from akkordeon.experiments.planning.costs import ModelCosts
from akkordeon.experiments.planning.dry_layout import DryLayout
from akkordeon.experiments.planning.layouts import RunLayout
from akkordeon.experiments.planning.machines import Machines

__all__ = ["Forecast", "dry_run"]

WARM_BATCHES = 20
MEASURED_BATCHES = 60
"""Before the count begins, and while it goes on; with replicas, those of a push of each more."""

UPDATES = 10
"""Before and while it goes on besides, where updates are waited for: batches come back in bursts then."""

SPREAD = LogNormal(1.0, 1.1)
"""Of what a message takes. If all took equally long, two batches could follow each other through a row in a
rhythm that leaves a gate waiting for ever, which no machine keeps to."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a layout would give.

    Args:
        layout: that was run dry.
        samples_per_s: trained.
        staleness: mean τ of all updates: of gates, or of shards where there are replicas.
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

    What workers of a host cost each other depends on how many are at work. A first run shows that, so there
    is a second one where it matters.
    """
    run = _Run(layout, costs, machines, {})
    if costs.crowding > 1 and max(run.busy.values()) > 1:
        run = _Run(layout, costs, machines, run.busy)
    return run.forecast()


class _Run:
    """One dry run.

    Args:
        layout: of the model.
        costs: of the model.
        machines: where it runs.
        busy: mean number of workers at work, by host.

    Attributes:
        busy: likewise, in this run.
    """

    def __init__(
        self, layout: RunLayout, costs: ModelCosts, machines: Machines, busy: Mapping[str, float]
    ) -> None:
        self._layout, self._costs = layout, costs
        self._hosts = {host.name: host for host in machines.hosts if host.name in layout.hosts}
        self._actors = DryLayout(layout, costs, machines.message)
        spawns = list(self._actors.spawns())
        where = self._actors.where
        hosts = [
            Host(
                host.name,
                [address for address in where if where[address] == host.name],
                host.cores // layout.intra_op_threads,
                bytes_per_s=host.bytes_per_s,
            )
            for host in self._hosts.values()
        ]
        slower = {name: self._slower(busy.get(name, 1.0)) / host.speed for name, host in self._hosts.items()}
        compute = {
            address: _times(cost, slower[where[address]]) for address, cost in self._actors.costs.items()
        }
        self._engine = Simulator(links=machines.links, compute=Compute(compute, spread=SPREAD), hosts=hosts)
        self._engine.start(lambda record: None, 0)
        try:
            for spawn in spawns:
                self._engine.spawn(spawn)
            self._go()
        finally:
            self._engine.stop()

    def _slower(self, busy: float) -> float:
        """How many times longer work takes while so many workers are at it; less than once by threads."""
        if self._layout.intra_op_threads > 1:
            assert self._costs.threaded_s is not None, "it was measured"
            return self._costs.threaded_s / self._costs.batch_s
        others = max(1, self._costs.workers - 1)
        return 1 + (self._costs.crowding - 1) * max(0.0, busy - 1) / others

    def _go(self) -> None:
        for trainer in self._actors.trainers:
            self._engine.send(trainer, Attach())
        more, trainers = self._layout.push_every or 0, len(self._actors.trainers)
        if self._layout.micro_batches > 1:
            more = UPDATES * self._layout.micro_batches
        self._until(WARM_BATCHES + trainers * more)
        began_s, before, bytes_before = self._actors.latest_s, self._actors.trained, self._bytes_sent()
        self._until(before + MEASURED_BATCHES + trainers * more)
        self._seconds = self._actors.latest_s - began_s
        self._samples = (self._actors.trained - before) * self._costs.samples
        self._bytes = self._bytes_sent() - bytes_before
        self.busy = self._mean_busy()

    def _until(self, trained: int) -> None:
        """Go on until so many batches are trained, in steps that grow; or a few more."""
        seconds = max(self._costs.batch_s, 1e-6)
        while self._actors.trained < trained:
            self._engine.wait_until(lambda: False, seconds)
            seconds *= 1.1

    def _bytes_sent(self) -> int:
        return sum(wire.bytes for _, _, wire in self._engine.wires())

    def _mean_busy(self) -> dict[str, float]:
        busy: dict[str, float] = defaultdict(float)
        for address, load in self._engine.loads().items():
            busy[self._actors.where[address]] += load.busy_s / self._engine.now_s()
        return dict(busy)

    def forecast(self) -> Forecast:
        """What it came to."""
        memory = self._actors.memory_bytes()
        most = {name: host.memory_gb for name, host in self._hosts.items() if host.memory_gb is not None}
        return Forecast(
            layout=self._layout,
            samples_per_s=self._samples / self._seconds,
            staleness=self._actors.mean_staleness(),
            memory_bytes=memory,
            bytes_per_sample=self._bytes / self._samples,
            fits=all(memory[name] <= gigabytes * 1e9 for name, gigabytes in most.items()),
        )


def _times(cost: Cost, factor: float) -> Cost:
    """The same cost where all takes so many times longer."""
    table = {name: (before * factor, after * factor) for name, (before, after) in cost.by_message().items()}
    return Cost(table=table)
