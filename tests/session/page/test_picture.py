"""How a session is, as plain data."""

from __future__ import annotations

import json

import torch
from tests.support.harness import small_network
from torch import nn

import akkordeon as ak
from akkordeon.core.reports import BatchCount, GateStatus, SentinelStatus, ShardStatus
from akkordeon.engines.base import Load
from akkordeon.session.page.picture import edges_of, gates_of, hosts_of, process_of, weights_bytes
from akkordeon.session.status import Status, staleness_classes

ROW = ("gate/0", "gate/1", "gate/2")


def gate(number, stashed, **changes):
    counts = {"version": 7, "stashed": stashed, "pinned": 0, "staleness": {0: 2, 3: 1}, "refused": {}}
    return GateStatus(probe=1, address=ROW[number], name=f"g{number}", index=number, **{**counts, **changes})


def sentinel(role, in_flight):
    return SentinelStatus(1, f"sentinel/{role}#1", role, role, 1, in_flight, 8, 8, BatchCount())


def status_of(gates, sentinels=(), loads=None):
    return Status(list(gates), list(sentinels), loads or {}, 1.0)


def test_batches_are_before_a_gate_between_two_and_after_the_last():
    status = status_of([gate(0, 5), gate(1, 3), gate(2, 1)], [sentinel("train", 6)])
    assert edges_of(ROW, status) == [1, 2, 2, 1]
    assert sum(edges_of(ROW, status)) == 6


def test_only_those_that_train_have_batches_on_the_edges():
    status = status_of([gate(0, 1), gate(1, 0), gate(2, 0)], [sentinel("train", 1), sentinel("validate", 9)])
    assert edges_of(ROW, status) == [0, 1, 0, 0]


def test_gates_that_were_asked_at_different_moments_give_no_negative_counts():
    assert edges_of(ROW, status_of([gate(0, 1), gate(1, 4), gate(2, 2)])) == [0, 0, 2, 2]


def test_a_gate_that_was_not_heard_of_yet_has_its_load_alone():
    found = gates_of(ROW[:2], status_of([gate(0, 1)], loads={"gate/1": Load(3, 9, 0.5)}), {"gate/0": 40})
    assert (
        found["gate/0"] | {"weights_bytes": 40, "name": "g0", "version": 7, "staleness": [2, 0, 1]}
        == found["gate/0"]
    )
    assert found["gate/1"] == {
        "name": "gate/1", "queued": 3, "handled": 9, "busy_s": 0.5, "restarts": 0, "weights_bytes": None,
    }  # fmt: skip


def test_shards_tell_of_pushes_fetches_and_bytes():
    shard = ShardStatus(
        1, "gate/0", "shard/0", 0, 7, 0, 0, {}, {}, pushes=5, fetches=6, bytes_in=70, bytes_out=80, waiting=1
    )
    (found,) = gates_of(ROW[:1], status_of([shard]), {}).values()
    assert found["shard"] == {"pushes": 5, "fetches": 6, "bytes_in": 70, "bytes_out": 80, "waiting": 1}


def test_classes_of_staleness_are_0_1_2_to_3_4_to_7():
    assert staleness_classes({0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 7: 6, 8: 7}) == [1, 2, 7, 11, 7]
    assert staleness_classes({}) == [0]


def test_bytes_of_weights_are_those_of_parameters_and_buffers():
    assert weights_bytes(small_network(), ROW) == {"gate/0": 4 * 63, "gate/1": 4 * 70, "gate/2": 4 * 32}
    normed = ak.Network([ak.Gate(nn.BatchNorm1d(3))])
    assert weights_bytes(normed, ("gate/0",)) == {"gate/0": 4 * 12 + 8}
    assert weights_bytes(ak.Downpour(small_network(), replicas=2), ROW) == {}


def test_actors_are_told_by_the_process_they_are_in():
    found = hosts_of({"gate/1": ("b", 2), "gate/0": ("a", 1), "sentinel/x#1": ("b", 2)})
    assert found == {
        "a 1": {"node": "a", "pid": 1, "actors": ["gate/0"]},
        "b 2": {"node": "b", "pid": 2, "actors": ["gate/1", "sentinel/x#1"]},
    }


def test_this_process_takes_memory():
    found = process_of()
    assert found["memory_bytes"] > 10e6
    assert torch.cuda.is_initialized() or "gpu_bytes" not in found
    json.dumps(found)
