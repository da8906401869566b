"""Scenarios: a world in a TOML file, to train in or to compare schedules in.

Every table is optional but one of ``[row]`` (dry: schedules are compared) and ``[train]`` (real gradients)::

    title = "…"
    seed = 0
    seconds = 600                     # virtual; with [train] the longest it may take

    [row]                             # dry: gates, samples, bytes, in_flight, sentinels, micros, …
    [train]                           # real: what `akkordeon train` takes: task, epochs, in_flight, …
    [cost]                            # of every gate: forward_s, backward_s, update_s, …; with [train] also
                                      # flops_per_s and bytes_per_s, or measure = 20 (batches, here and now)
    [link]                            # preset, or latency_s (p99_s), bytes_per_s, loss
    [[between]]                       # one, other, and a link, where it is another
    [[host]]                          # name, actors, cores, zone
    [[slowdown]] [[crash]] [[partition]] [[freeze]]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from akkordeon.core.errors import ScenarioError
from akkordeon.data.sources import as_batches
from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown
from akkordeon.engines.simulator.distributions import Distribution, LogNormal, Uniform
from akkordeon.engines.simulator.engine import Simulator
from akkordeon.engines.simulator.faults import Crash, Freeze, Partition, SimulatedFault
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import PRESETS, Link, Links
from akkordeon.engines.timeline import Timeline
from akkordeon.experiments.build import build_network, build_sentinels, build_trainers
from akkordeon.experiments.config import TrainConfig
from akkordeon.experiments.run import run
from akkordeon.experiments.schedules.compare import SCHEDULES, compare
from akkordeon.experiments.schedules.measure_costs import from_operations, measure_costs
from akkordeon.experiments.schedules.world import ScheduleOutcome, World
from akkordeon.pipeline.network import Network
from akkordeon.sentinels.loss import Loss
from akkordeon.session.records.digest import weights_digest
from akkordeon.watch.summary import summary

__all__ = ["Row", "Scenario", "load_scenario", "train_scenario"]


@dataclass(frozen=True)
class Row:
    """What is compared.

    Args:
        gates: how many.
        samples: in a batch, or in a micro-batch of the synchronous schedules.
        bytes: of what one gate sends another.
        in_flight: batches under way, of each of
        sentinels: so many.
        micros: micro-batches between two updates of the synchronous schedules.
        weight_bytes: of all gates together, for the all-reduce of data parallelism.
        checkpoint_every_s: what a gate that comes back begins with.
        schedules: which.
    """

    gates: int
    samples: int = 1
    bytes: int = 0
    in_flight: int = 8
    sentinels: int = 1
    micros: int = 32
    weight_bytes: int = 0
    checkpoint_every_s: float = 60.0
    schedules: tuple[str, ...] = SCHEDULES


@dataclass(frozen=True)
class Scenario:
    """A scenario, read.

    Attributes:
        title: what it is called.
        seed: of everything random.
        seconds: virtual, how long it lasts, at the most.
        row: what to compare, or
        train: what to train.
        cost: of every gate.
        links: between hosts.
        hosts: machines with several actors.
        slowdowns: stragglers.
        faults: what goes wrong.
    """

    title: str
    seed: int
    seconds: float
    row: Row | None
    train: TrainConfig | None
    cost: Mapping[str, Any]
    links: Links
    hosts: tuple[Host, ...]
    slowdowns: tuple[Slowdown, ...]
    faults: tuple[SimulatedFault, ...]

    def compare(self, timeline: Timeline | None = None) -> list[ScheduleOutcome]:
        """What every schedule makes of it."""
        row = self.row
        assert row is not None
        world = World(
            costs=[_made(Cost, self.cost, "[cost]")] * row.gates,
            link=self.links.default,
            bytes_between=row.bytes,
            samples=row.samples,
            seconds=self.seconds,
            seed=self.seed,
            slowdowns=self.slowdowns,
            faults=self.faults,
            checkpoint_every_s=row.checkpoint_every_s,
            weight_bytes=row.weight_bytes,
        )
        return compare(world, row.in_flight, row.micros, row.schedules, row.sentinels, timeline)


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario.

    Raises:
        ScenarioError: there is no such file, it is no TOML, or something in it is unknown or out of range.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ScenarioError(f"{path} cannot be read: {error}") from error
    try:
        return _scenario(table)
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"{path}: {error}") from error


def _scenario(table: dict[str, Any]) -> Scenario:
    row, training = table.pop("row", None), table.pop("train", None)
    if (row is None) == (training is None):
        raise ScenarioError("a scenario has either [row], to compare schedules, or [train], to train a task")
    between = [(b.pop("one"), b.pop("other"), _link(b)) for b in table.pop("between", [])]
    faults: list[SimulatedFault] = []
    for name, kind in (("crash", Crash), ("partition", Partition), ("freeze", Freeze)):
        faults += [_made(kind, fault, f"[[{name}]]") for fault in table.pop(name, [])]
    scenario = Scenario(
        title=table.pop("title", ""),
        seed=table.pop("seed", 0),
        seconds=float(table.pop("seconds", 600)),
        row=None if row is None else _made(Row, {**row, "schedules": _schedules(row)}, "[row]"),
        train=None if training is None else _made(TrainConfig, training, "[train]"),
        cost=table.pop("cost", {}),
        links=Links(_link(table.pop("link", {})), between),
        hosts=tuple(_made(Host, host, "[[host]]") for host in table.pop("host", [])),
        slowdowns=tuple(_made(Slowdown, slow, "[[slowdown]]") for slow in table.pop("slowdown", [])),
        faults=tuple(faults),
    )
    if not scenario.cost.keys() & {"flops_per_s", "measure"}:
        _made(Cost, scenario.cost, "[cost]")
    if table:
        raise ScenarioError(f"nothing is known of {', '.join(sorted(table))}")
    return scenario


def _schedules(row: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = tuple(row.get("schedules", SCHEDULES))
    unknown = [name for name in chosen if name not in SCHEDULES]
    if unknown:
        raise ScenarioError(f"there is no schedule {unknown[0]!r}; there are {', '.join(SCHEDULES)}")
    return chosen


def _link(table: dict[str, Any]) -> Link:
    table = dict(table)
    preset = table.pop("preset", None)
    if preset is not None:
        if table or preset not in PRESETS:
            raise ScenarioError(
                f"a link is a preset alone ({', '.join(PRESETS)}) or described; got {preset!r}"
            )
        return PRESETS[preset]
    typical_s = float(table.pop("latency_s", 0.0))
    latency: float | Distribution = typical_s
    if "p99_s" in table:
        latency = LogNormal(typical_s, float(table.pop("p99_s")))
    elif "latency_max_s" in table:
        latency = Uniform(typical_s, float(table.pop("latency_max_s")))
    made: Link = _made(Link, {"latency_s": latency, **table}, "a link")
    return made


def _made(kind: type, table: Mapping[str, Any], where: str) -> Any:
    """An object of a dataclass from a table, with the name of what nobody knows."""
    known = {field.name for field in fields(kind)}
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ScenarioError(f"{where} has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return kind(**table)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────


def train_scenario(
    scenario: Scenario, record: str | Path | None = None, timeline: Timeline | None = None
) -> dict[str, Any]:
    """Train the scenario's task in its world, with real gradients.

    Returns:
        What it came to: everything in it is the same each time, but for ``record_failure``, which is there
        only where the record breaks off.
    """
    config = scenario.train
    assert config is not None
    task = config.load_task()
    network = build_network(task, config)
    batches = as_batches(build_trainers(task, config)[0].batches, config.batch_size or task.batch_size)
    costs = _costs(scenario, network, batches, task.loss)
    engine = Simulator(
        scenario.seed,
        links=scenario.links,
        compute=Compute(costs, scenario.slowdowns),
        faults=scenario.faults,
        hosts=scenario.hosts,
    )
    engine.timeline = timeline
    history: list[dict[str, Any]] = []
    with run(network, engine, seed=config.seed, record=record, task=config.as_plain()) as session:
        for sentinel in build_sentinels(task, config):
            session.attach(sentinel)
        session.subscribe(lambda record: _remember(history, record, engine.now_s()), inline=True)
        try:
            session.wait(scenario.seconds)
        finally:
            seconds = engine.now_s()
            status = session.status()
        report = summary(session, seconds)
        wires = {f"{a} > {b}": wire.bytes for a, b, wire in engine.wires()}
    failure = session.record_failure
    return {
        "title": scenario.title,
        **({} if failure is None else {"record_failure": failure}),
        **report,
        "utilisation": {a: status.loads[a].busy_s / (seconds or 1.0) for a in network.row()},
        "staleness": {g.address: {str(t): n for t, n in sorted(g.staleness.items())} for g in status.gates},
        "bytes": wires,
        "history": history,
        "costs_s": {address: cost.by_message() for address, cost in costs.items()},
        "events": engine.events,
        "weights_sha256": weights_digest(session.module().state_dict().values()),
    }


def _costs(scenario: Scenario, network: Network, batches: Iterable[Any], loss: Loss) -> dict[str, Cost]:
    """One cost for all gates, or each its own: from its operations, or measured."""
    if "flops_per_s" in scenario.cost:
        return from_operations(network, next(iter(batches))[0], **scenario.cost)
    if "measure" in scenario.cost:
        return measure_costs(network, list(islice(batches, scenario.cost["measure"])), loss)
    return {"gate/*": _made(Cost, scenario.cost, "[cost]")}


def _remember(history: list[dict[str, Any]], record: Any, now_s: float) -> None:
    """Keep every epoch and round with its virtual time."""
    loss = getattr(record, "loss", None)
    if loss is not None:
        scores = dict(record.scores)
        history.append({"at_s": now_s, "sentinel": record.sentinel, "loss": loss, "scores": scores})
