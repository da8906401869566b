"""What came to every actor in a session, to send it again, changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from tests.support.harness import sgd
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import Actor, Report
from akkordeon.engines.simulator.faults import Crash
from akkordeon.engines.simulator.links import Link

SECONDS = 300.0
"""Virtual, in which a session of some hundred messages ends."""


@dataclass
class Traffic:
    """Of one actor."""

    make: Callable[[], Actor]
    messages: list[Any] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)


class Tap:
    """Notes what is handled and reported, and by whom."""

    def __init__(self, engine: ak.Simulator) -> None:
        self.traffic: dict[str, Traffic] = {}
        spawn = engine.spawn

        def noted(what: Any, beside: str | None = None) -> None:
            self.traffic.setdefault(what.address, Traffic(what.make))
            spawn(what, beside)

        engine.spawn = noted  # type: ignore[method-assign]
        engine.recorder = self

    def listen(self, actor: Actor, message: Any, now_s: float) -> Iterator[Any]:
        traffic = self.traffic[actor.address]
        traffic.messages.append(message)
        for effect in actor.receive(message, now_s):
            if isinstance(effect, Report):
                traffic.records.append(effect.record)
            yield effect


def _batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(n)]


def _network(recovery: ak.Recovery | None = None) -> ak.Network:
    parts = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh()), nn.Linear(6, 5), nn.Linear(5, 3)]
    gates = [ak.Gate(part, sgd) for part in parts]
    return ak.Network(gates, max_in_flight=32, max_payload_bytes=10**6, recovery=recovery)


@cache
def of_a_row() -> dict[str, Traffic]:
    """Training, validation and checkpoints on a row of three, of which the middle one dies once."""
    fault = Crash(who="gate/1", at_s=0.3, back_after_s=0.0)
    engine = ak.Simulator(links=Link(0.001), faults=[fault])
    recovery = ak.Recovery(snapshot_every=3, backoff_s=0.0)
    return _recorded(ak.run(_network(recovery), engine=engine), engine, _trainers)


@cache
def of_a_stream() -> dict[str, Traffic]:
    """Streams of pairs with late labels, and of questions and answers; the middle gate dies once."""
    fault = Crash(who="gate/1", at_s=0.3, back_after_s=0.0)
    engine = ak.Simulator(links=Link(0.001), faults=[fault])
    recovery = ak.Recovery(snapshot_every=3, backoff_s=0.0)
    return _recorded(ak.run(_network(recovery), engine=engine), engine, _streams)


def _streams() -> list[ak.Sentinel]:
    return [
        ak.Sentinel.stream(_batches(60), F.cross_entropy, delay=7, in_flight=3, name="pairs"),
        ak.Sentinel.stream(_questions(60), F.cross_entropy, max_waiting=9, in_flight=3, name="keys"),
    ]


def _questions(n: int) -> list[ak.Question | ak.Answer]:
    """Every third label never comes."""
    events: list[ak.Question | ak.Answer] = []
    for i, (x, y) in enumerate(_batches(n)):
        events += [ak.Question(i, x), *([ak.Answer(i, y)] if i % 3 else [])]
    return events


@cache
def of_a_downpour() -> dict[str, Traffic]:
    """The same with two replicas, and shards that are divided; one of the shards dies once."""
    fault = Crash(who="shard/1", at_s=0.3, back_after_s=0.0)
    engine = ak.Simulator(links=Link(0.001), faults=[fault])
    downpour = ak.Downpour(
        _network(ak.Recovery(snapshot_every=3, backoff_s=0.0)),
        replicas=2,
        push_every=2,
        warm_start=2,
        max_shard_bytes=100,
        fetch_compression="int8",
        server_optimizer=sgd,
    )
    return _recorded(ak.run(downpour, engine=engine), engine, _trainers)


def _trainers() -> list[ak.Sentinel]:
    return [
        ak.Sentinel.train(_batches(40), F.cross_entropy, in_flight=3, epochs=2, name=name)
        for name in ("a", "b")
    ]


def _recorded(
    session: ak.Session, engine: ak.Simulator, make: Callable[[], list[ak.Sentinel]]
) -> dict[str, Traffic]:
    torch.manual_seed(0)
    tap = Tap(engine)
    with session:
        for network in session._topology.spawns(session.seed):
            tap.traffic[network.address] = Traffic(network.make)
        trainers = make()
        validator = ak.Sentinel.validate(
            _batches(3), F.cross_entropy, every_updates=5, keep_last=True, name="v"
        )
        keeper = ak.Sentinel.checkpoint(every_updates=7, name="c")
        for sentinel in (validator, keeper, *trainers):
            session.attach(sentinel)
        session.wait(timeout=SECONDS)
    return tap.traffic
