"""Shards, their parts and the gates of replicas come back alone; their sentinels go on."""

from __future__ import annotations

import pytest
import torch
from tests.session.recovery.test_gates import FailingBackward, assert_sums, data, network, simulator
from tests.support.harness import WAIT_S, same_bits
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.reports import GateRestarted
from akkordeon.engines.simulator.faults import Crash


def downpour(net=None, **settings):
    settings = {
        "push_every": 2,
        "server_optimizer": lambda params: torch.optim.SGD(params, lr=0.05),
        **settings,
    }
    return ak.Downpour(network() if net is None else net, replicas=2, **settings)


def trained(recipe, engine, epochs=4):
    restarts = []
    with ak.run(recipe, engine=engine) as session:
        session.subscribe(lambda r: restarts.append(r) if isinstance(r, GateRestarted) else None, inline=True)
        vdp = session.attach(ak.Sentinel.validate(data(6), F.cross_entropy, every_updates=9, name="vdp"))
        tdp = session.attach(
            ak.Sentinel.train(data(), F.cross_entropy, epochs=epochs, in_flight=3, name="tdp")
        )
        session.wait(timeout=1000 if isinstance(engine, ak.Simulator) else WAIT_S)
        module = session.module()
    return tdp, vdp, restarts, module


WHO = ["shard/0", "shard/1", "shard/2", "replica/0/gate/0", "replica/1/gate/1", "replica/0/gate/2"]


@pytest.mark.parametrize("fetch", ["background", "wait"])
@pytest.mark.parametrize("at_s", [0.0, 0.217, 0.66])
@pytest.mark.parametrize("who", WHO)
def test_a_shard_or_a_gate_of_a_replica_that_crashes_comes_back(who, at_s, fetch):
    crash = Crash(who=who, at_s=at_s, back_after_s=0.2)
    tdp, vdp, restarts, _ = trained(downpour(fetch=fetch), simulator(crash))
    assert [r.address for r in restarts] == [who]
    assert tdp.batches.sent == 160
    assert tdp.batches.trained > 120
    assert_sums(tdp.batches)
    assert tdp.errors == {}
    assert vdp.rounds[-1].loss < vdp.rounds[0].loss


@pytest.mark.parametrize("who", ["shard/0", "shard/0.1", "shard/1.2", "shard/1"])
@pytest.mark.parametrize("at_s", [0.1, 0.4])
def test_a_part_or_a_front_of_a_split_position_comes_back(who, at_s):
    recipe = downpour(max_shard_bytes=1)
    tdp, vdp, restarts, _ = trained(recipe, simulator(Crash(who=who, at_s=at_s)))
    assert [r.address for r in restarts] == [who]
    assert tdp.batches.trained > 120
    assert_sums(tdp.batches)
    assert vdp.rounds[-1].loss < vdp.rounds[0].loss


@pytest.mark.parametrize("who", ["shard/0", "shard/1.1", "replica/0/gate/1", "replica/1/gate/2"])
def test_replicas_that_fetch_differences_go_on_from_whole_weights_when_somebody_comes_back(who):
    recipe = downpour(compression="int8", fetch_compression="int8", fetch="wait", max_shard_bytes=200)
    tdp, vdp, restarts, _ = trained(recipe, simulator(Crash(who=who, at_s=0.25)))
    assert [r.address for r in restarts] == [who]
    assert tdp.batches.trained > 120
    assert_sums(tdp.batches)
    assert vdp.rounds[-1].loss < vdp.rounds[0].loss


def test_local_sgd_goes_on_when_a_shard_comes_back():
    recipe = downpour(
        network(recovery=ak.Recovery(snapshot_every=5, restarts=100)),
        push="differences",
        push_every=4,
        fetch="wait",
        server_optimizer=lambda params: torch.optim.SGD(params, lr=0.5),
    )
    tdp, vdp, restarts, _ = trained(recipe, simulator(Crash(who="shard/*", every_s=0.5)))
    assert restarts
    assert_sums(tdp.batches)
    assert vdp.rounds[-1].loss < vdp.rounds[0].loss


def test_a_warm_start_that_a_crash_cuts_off_lets_all_begin():
    tdp, _, restarts, _ = trained(downpour(warm_start=20), simulator(Crash(who="shard/1", at_s=0.1)))
    assert len(restarts) == 1
    assert tdp.batches.trained > 120
    assert_sums(tdp.batches)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gate_of_a_replica_that_raises_comes_back_and_its_sentinel_goes_on(workers):
    recipe = downpour(network(FailingBackward(13, 40)))
    tdp, _, restarts, _ = trained(recipe, ak.Threads(workers=workers))
    assert len(restarts) == 2
    assert {r.address for r in restarts} <= {"replica/0/gate/1", "replica/1/gate/1"}
    assert tdp.batches.refused >= 1
    assert tdp.errors == {}
    assert_sums(tdp.batches)


def test_a_gate_of_a_replica_that_raises_too_often_ends_its_own_sentinels_alone():
    recovery = ak.Recovery(restarts=1)
    recipe = downpour(network(FailingBackward(*range(9, 14)), recovery))
    with ak.run(recipe, engine=ak.Threads(workers=1)) as session:
        tdp = session.attach(ak.Sentinel.train(data(), F.cross_entropy, epochs=4, in_flight=1, name="tdp"))
        with pytest.raises(ak.errors.GateFailedError, match="it was made anew 1 times"):
            session.wait(timeout=WAIT_S)
        assert len(tdp.errors) in (1, 2)


def test_recovery_that_is_not_needed_changes_no_bit_of_a_downpour():
    kept = trained(downpour(), ak.Threads(workers=1), epochs=1)[3]
    plain = trained(downpour(ak.Network(network().gates)), ak.Threads(workers=1), epochs=1)[3]
    assert same_bits(kept, plain)
