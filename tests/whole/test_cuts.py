"""Consistent cuts and complete accounts, over thousands of random interleavings of the actors."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import Shuffled
from torch import nn

import akkordeon as ak
from akkordeon.core.messages import Attach, Cut, Detach, Due
from akkordeon.core.reports import BatchRefused, RoundDone, SentinelEnded
from akkordeon.sentinels.evaluator import Evaluator
from akkordeon.sentinels.reader import Reader
from akkordeon.sentinels.training.trainer import Trainer

GATES = 3
SEEDS = [
    pytest.param(range(200), id="200 seeds"),
    pytest.param(range(200, 2000), id="1,800 more", marks=pytest.mark.slow),
]
X = torch.ones(1, 1)


def mean(outputs, targets):
    return outputs.mean()


def stage(seed: int, trainers: int, in_flight: int, batches: int, source=None, **network) -> Shuffled:
    """A row of gates, some trainers and two validators, ready to run."""
    shuffled = Shuffled(seed)
    row = ak.Network([ak.Gate(nn.Identity()) for _ in range(GATES)], **network)
    shuffled.add(*(spawn.make() for spawn in row.spawns(0)))

    def attach(name: str, make, recipe, epochs):
        me, reader = f"sentinel/{name}#1", f"reader/{name}#1"
        shuffled.add(Reader(reader, me, lambda _: recipe.batches, epochs))
        shuffled.add(make(me, name, row.row(), reader, recipe))
        shuffled.send(me, Attach())

    for i in range(trainers):
        data = [(X, None)] * batches if source is None else source
        attach(f"t{i}", Trainer, ak.Sentinel.train(data, mean, in_flight=in_flight), 1)
    for i in range(2):
        recipe = ak.Sentinel.validate([(X, None)] * 3, mean, every_updates=2 + i)
        attach(f"v{i}", Evaluator, recipe, None)
    return shuffled


def finish(shuffled: Shuffled) -> None:
    """Let everything come to rest, and the validators make their last round."""
    shuffled.run()
    for i in range(2):
        shuffled.send(f"sentinel/v{i}#1", Due(last=True))
    shuffled.run()


def ended(shuffled: Shuffled) -> dict[str, tuple]:
    found = [r for r in shuffled.records if isinstance(r, SentinelEnded)]
    return {record.address: record.batches.as_tuple() for record in found}


def gates(shuffled: Shuffled) -> list:
    return [shuffled.actors[f"gate/{i}"] for i in range(GATES)]


@pytest.mark.parametrize("seeds", SEEDS)
def test_every_cut_finds_all_gates_after_the_same_set_of_batches(seeds, monkeypatch):
    versions = []
    pinned = Evaluator._pinned

    def spy(self, message: Cut, now_s: float):
        versions.append(message.versions)
        return pinned(self, message, now_s)

    monkeypatch.setattr(Evaluator, "_pinned", spy)
    cuts = 0
    for seed in seeds:
        shuffled = stage(seed, trainers=2, in_flight=1 + seed % 3, batches=3)
        finish(shuffled)
        for of_gates in shuffled.cuts.values():
            cuts += 1
            assert len(of_gates) == GATES
            assert len(set(of_gates)) == 1, (seed, of_gates)
    assert len(versions) == cuts
    assert all(len(set(of_cut)) == 1 for of_cut in versions)
    assert len({of_cut[0] for of_cut in versions}) > 4  # cuts were made all along the way
    assert cuts > len(seeds)


@pytest.mark.parametrize("seed", range(20))
def test_at_rest_every_batch_is_accounted_for_and_the_gates_hold_nothing(seed):
    shuffled = stage(seed, trainers=3, in_flight=5, batches=8)
    finish(shuffled)
    assert set(shuffled.actors) == {f"gate/{i}" for i in range(GATES)}
    assert len(ended(shuffled)) == 5
    assert [ended(shuffled)[f"sentinel/t{i}#1"] for i in range(3)] == [(8, 8, 0, 0)] * 3
    for gate in gates(shuffled):
        assert gate.version == 24
        assert not gate.stash
        assert not gate.pins
        assert not gate._watchers


@pytest.mark.parametrize("seed", range(60))
def test_so_it_is_when_sentinels_leave_at_any_moment_and_batches_are_refused(seed):
    nan = torch.full((1, 1), float("nan"))
    source = [(X, None), (nan, None), (X, None), (X, None)] * 3
    shuffled = stage(seed, 3, 4, 0, source, max_staleness=seed % 3)
    for _ in range(seed * 7):
        shuffled.step()
    shuffled.send("sentinel/t0#1", Detach())
    shuffled.send("sentinel/t1#1", Detach(drop=True))
    shuffled.send("sentinel/v0#1", Detach(drop=True))
    finish(shuffled)
    assert set(shuffled.actors) == {f"gate/{i}" for i in range(GATES)}
    accounts = ended(shuffled)
    assert len(accounts) == 5
    for sent, trained, refused, lost in accounts.values():
        assert sent == trained + refused + lost
    refusals = [r for r in shuffled.records if isinstance(r, BatchRefused)]
    assert len(refusals) == sum(refused for _, _, refused, _ in accounts.values())
    for gate in gates(shuffled):
        assert not gate.stash
        assert not gate.pins
        assert not gate._watchers


@pytest.mark.parametrize("seed", range(10))
def test_validation_gets_its_turns_beside_three_trainers_with_five_in_flight(seed):
    shuffled = stage(seed, trainers=3, in_flight=5, batches=150)
    while "sentinel/t0#1" in shuffled.actors:
        shuffled.step()
    rounds = [r for r in shuffled.records if isinstance(r, RoundDone)]
    updates = gates(shuffled)[0].version
    assert len(rounds) > 5
    assert updates > 300
    at = sorted(r.version for r in rounds)
    assert max(b - a for a, b in zip([0, *at], [*at, updates], strict=False)) < 150
