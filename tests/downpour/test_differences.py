"""Fetches made smaller: replica and shard know the same weights, and what was lost comes with the next."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.downpour.test_replica_gate import X, parameters, replica, weight
from tests.downpour.test_shard import fetched, push, shard, status
from tests.support.harness import do, forward, sends
from torch import nn

import akkordeon as ak
from akkordeon.core.messages import Forget
from akkordeon.core.recovery.messages import Restarted
from akkordeon.core.shard_messages import Fetch, Left, Parameters, Push
from akkordeon.downpour.differences import Lending, Received

SGD = partial(torch.optim.SGD, lr=0.5)
KINDS = ["bf16", "int8"]


class Replica:
    """Takes in what a shard packs for it."""

    def __init__(self, lending: Lending) -> None:
        self._lending = lending
        self._received: Received | None = None

    def fetch(self, version: int, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (payload, scales), since = self._lending.pack("r", version, weights)
        if since is None:
            self._received = Received(version, payload)
        else:
            assert self._received is not None
            assert self._received.version == since
            self._received = self._received.plus((payload, scales), version)
        return self._received.weights


# ── the two sides ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_both_sides_know_the_same_bits_however_far_the_weights_go(kind, dtype):
    lending = Lending(kind)
    there = Replica(lending)
    for version in range(20):
        weights = torch.randn(7, 3, dtype=dtype) * 3.0**-version, torch.randn((), dtype=dtype)
        has = there.fetch(version, *weights)
        assert all(map(torch.equal, has, lending.lent("r", weights)))
        assert [w.dtype for w in has] == [dtype, dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_lost_comes_with_the_next_fetches(kind):
    there = Replica(Lending(kind))
    there.fetch(0, torch.zeros(50))
    weights = torch.randn(50)
    errors = [(there.fetch(1, weights)[0] - weights).abs().max().item() for _ in range(5)]
    assert 0 < errors[0] < 0.02
    assert errors[-1] < 1e-6


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("int8", torch.int8)])
def test_the_first_weights_go_whole_and_all_others_small(kind, dtype):
    lending, weights = Lending(kind), torch.randn(5)
    (first, _), since = lending.pack("r", 3, (weights,))
    assert (first[0] is weights, since) == (True, None)
    (then, _), since = lending.pack("r", 5, (weights + 1,))
    assert (then[0].dtype, since) == (dtype, 3)
    assert lending.pack("another", 5, (weights,))[1] is None


@pytest.mark.parametrize("kind", KINDS)
def test_weights_whose_difference_is_not_finite_go_whole(kind):
    there = Replica(Lending(kind))
    for version, value in enumerate([3e38, -3e38, float("inf"), float("inf"), 1.0]):
        assert there.fetch(version, torch.full((2,), value))[0].tolist() == torch.full((2,), value).tolist()


def test_without_compression_nothing_is_remembered():
    lending, weights = Lending(None), (torch.randn(2),)
    assert lending.pack("r", 0, weights) == ((weights, None), None)
    assert lending.pack("r", 1, weights) == ((weights, None), None)
    assert lending.lent("r", weights) is weights
    assert not lending._has


# ── the shard ────────────────────────────────────────────────────────────────────────────────────────


def test_a_shard_lends_differences_and_counts_their_bytes():
    actor = shard(compression="int8")
    first = fetched(actor)
    do(actor, push(0, torch.tensor([[1.0, 4.0]])))
    second = fetched(actor)
    assert (first.since, second.since, second.version) == (None, 0, 1)
    assert second.payload[0].tolist() == [[-32, -127]]
    assert status(actor).bytes_out == 8 + 2


@pytest.mark.parametrize("again", [Left("r/0"), Forget("r/0"), Fetch("r/0", is_first=True)])
def test_a_replica_that_left_or_begins_anew_is_lent_whole_weights(again):
    actor = shard(compression="int8")
    fetched(actor)
    assert fetched(actor).since == 0
    lent = sends(do(actor, again), Parameters) or sends(do(actor, Fetch("r/0")), Parameters)
    assert [message.since for message in lent] == ([] if isinstance(again, Forget) else [None])
    assert not isinstance(again, Forget) or not actor._lending._has


def test_delay_is_compensated_from_the_weights_that_the_replica_has():
    """Those are what its gradients were taken at."""
    actor = shard(nn.Linear(5, 3), staleness=ak.DelayCompensation(), compression="int8")
    has = Received(0, fetched(actor).payload)
    do(actor, push(0, torch.randn(3, 5), torch.randn(3)))
    answer = fetched(actor)
    has = has.plus((answer.payload, answer.scales), answer.version)
    assert not torch.equal(has.weights[0], actor.weights.now[0])
    assert all(map(torch.equal, actor._lent["r/0"][1], has.weights))


# ── the replica's gate ───────────────────────────────────────────────────────────────────────────────


def difference(version: int, since: int, *steps: int, scale: float = 0.5) -> Parameters:
    whole = torch.tensor([steps], dtype=torch.int8)
    return Parameters("shard/0", version, (whole,), since=since, scales=(scale,))


def test_a_gate_adds_a_difference_to_what_it_fetched_last_and_not_to_its_local_steps():
    actor = replica(fetch_compression="int8")
    do(actor, forward(0, X), parameters(4, 1.0, 2.0))
    actor._updater.update([torch.ones(1, 2)], actor.weights.now, 0)
    do(actor, difference(6, 4, 2, -4), difference(7, 6, 1, 1))
    assert weight(actor) == [2.5, 0.5]


def test_a_gate_asks_for_whole_weights_when_a_difference_is_from_others_than_it_has():
    """On its way from a shard that died, it comes after the first weights of the one in its place."""
    actor = replica(fetch_compression="int8")
    do(actor, forward(0, X), parameters(4, 1.0, 2.0), Restarted("shard/0"), parameters(9, 3.0, 3.0))
    assert sends(do(actor, difference(6, 4, 2, -4))) == [Fetch("r/gate/0", is_first=True)]
    assert weight(actor) == [3.0, 3.0]
    do(actor, parameters(9, 3.0, 3.0), difference(10, 9, 1, 1))
    assert weight(actor) == [3.5, 3.5]


def test_a_gate_that_has_nothing_yet_waits_for_its_first_weights():
    """What comes was on its way to the gate in whose place it is."""
    actor = replica(fetch_compression="int8")
    assert do(actor, difference(6, 4, 2, -4)) == []
    assert sends(do(actor, forward(0, X)), Fetch) == [Fetch("r/gate/0", is_first=True)]
    assert do(actor, difference(6, 4, 2, -4)) == []
    do(actor, parameters(6, 1.0, 1.0))
    assert weight(actor) == [1.0, 1.0]


# ── together ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_replica_computes_with_follows_its_shard_through_a_hundred_updates(kind):
    torch.manual_seed(0)
    module = nn.Linear(8, 8)
    actor = shard(module, compression=kind)
    gate = replica(module, fetch_compression=kind, wait=True, local_step=False)
    (ask,) = sends(do(gate, forward(0, torch.randn(4, 8))), Fetch)
    (lent,) = sends(do(actor, ask), Parameters)
    do(gate, lent)
    for number in range(100):
        gradients = tuple(torch.randn_like(w) / (number + 1) for w in actor.weights.now)
        effects = do(actor, Push("r/gate/0", actor.version, 1, gradients, fetch=True))
        do(gate, *sends(effects, Parameters))
        has = actor._lending.lent("r/gate/0", ())
        assert all(map(torch.equal, has, gate.weights.now))
    for mine, masters in zip(gate.weights.now, actor.weights.now, strict=True):
        torch.testing.assert_close(mine, masters, rtol=0, atol=1e-3)
