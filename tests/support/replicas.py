"""What holds of replicas and shards, whether a position has one shard or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tests.support.harness import WAIT_S, batches_of, same_bits
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.engines.base import Engine
from akkordeon.engines.simulator import Compute, Cost, Link
from akkordeon.engines.simulator.distributions import Exponential


def check_batches_are_conserved(training: Iterable[ak.Attachment], may_refuse: bool) -> None:
    """Every batch sent is trained, refused or lost, and lost only where a replica failed."""
    for attachment in training:
        sent, done, refused, lost = attachment.batches.as_tuple()
        assert sent == done + refused + lost
        if attachment.error is None:
            assert lost == 0
            assert refused == 0 or may_refuse


def check_pushes_are_conserved(shards: Iterable[Any], max_staleness: int | None) -> None:
    """Every push is applied or refused for its age, and nothing is kept at rest."""
    for shard in shards:
        assert shard.pushes == shard.version + sum(shard.refused.values())
        assert sum(shard.staleness.values()) == shard.version
        assert shard.waiting == shard.pinned == 0
        assert set(shard.refused) <= {"too_stale"}
        assert max_staleness is None or shard.staleness_max <= max_staleness


def pushes_due(training: Iterable[ak.Attachment], push_every: int) -> int:
    """How many pushes the batches trained make, the last of a replica with what is left."""
    return sum(-(-attachment.batches.trained // push_every) for attachment in training)


def check_replays_to_the_same_bits(recipe: ak.Downpour, engine: Engine, folder: Path) -> None:
    """Train and validate on an engine, with a record, and replay it."""
    sentinels = [
        ak.Sentinel.train(batches_of(30), F.cross_entropy, in_flight=3, name="t"),
        ak.Sentinel.validate(batches_of(3), F.cross_entropy, every_updates=7, name="v"),
    ]
    file = folder / "record.gz"
    with ak.run(recipe, engine=engine, record=file) as session:
        for sentinel in sentinels:
            session.attach(sentinel)
        session.wait(timeout=WAIT_S)
    again = ak.replay(file, recipe, sentinels)
    assert same_bits(again.module(), session.module())


def check_a_seed_decides_the_bits(made: Callable[[], ak.Downpour]) -> None:
    """In the simulator, with times that are drawn."""

    def run(seed: int) -> torch.nn.Module:
        engine = ak.Simulator(
            seed, links=Link(Exponential(0.02)), compute=Compute({"replica/*": Cost(forward_s=0.01)})
        )
        torch.manual_seed(0)
        with ak.run(made(), engine=engine) as session:
            session.attach(ak.Sentinel.train(batches_of(30), F.cross_entropy)).wait(timeout=WAIT_S)
            return session.module(timeout=WAIT_S)

    assert same_bits(run(1), run(1))
    assert not same_bits(run(1), run(2))
