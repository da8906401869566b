"""What messages have done that nobody sends who means well: each is refused or dropped now."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.support.harness import do, gate_alone, reports, sends, stops
from tests.support.traffic import of_a_downpour, of_a_row
from torch import nn

from akkordeon.core.actor import Report
from akkordeon.core.checkpoint_messages import AllRead, Locate, Located
from akkordeon.core.errors import DataError
from akkordeon.core.messages import Backward, Cut, CutId, Exported, Fault, Forward, Refused
from akkordeon.core.plain_state import Applied
from akkordeon.core.reports import CheckpointTaken, MessageRefused
from akkordeon.core.shard_messages import Dropped, Fetch, Parameters, Push, Settled
from akkordeon.core.well_formed import malformed
from akkordeon.downpour import shard as sharding
from akkordeon.pipeline import stage as staging
from akkordeon.sentinels import base


def at_work(recorded, name: str, kind: type, skipped: int = 0):
    """An actor as it was when a message of a kind was due, and that message; so many of them before it."""
    traffic = recorded()[name]
    actor = traffic.make()
    for message in traffic.messages:
        if isinstance(message, kind):
            if not skipped:
                return actor, message
            skipped -= 1
        do(actor, message)
    raise AssertionError(f"no {kind.__name__} came to {name}")


def is_refused(effects: list) -> bool:
    return bool(reports(effects, MessageRefused)) and len(effects) == 1


def test_a_list_of_batches_applied_is_no_set_of_them():
    """Whoever was located with it raised, as one cannot look a batch up in it."""
    assert malformed(Locate("c", applied=Applied(3, frozenset({1})))) is None
    assert "applied" in malformed(Locate("c", applied=Applied(3, (1,))))


# ── gates and shards ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": "ghost"},
        {"payload": ()},
        {"payload": (torch.ones(2),)},
        {"buffers": {"ghost": torch.ones(6)}},
    ],
)
def test_a_replica_refuses_weights_that_are_not_of_its_shard(changes):
    """A gate stopped on a shard that it did not know, and later on weights of another form."""
    gate, message = at_work(of_a_downpour, "replica/0/gate/2", Parameters, 1)
    before = gate.weights.now
    assert is_refused(do(gate, replace(message, **changes)))
    assert gate.weights.now is before


def test_a_replica_refuses_to_be_told_of_pushes_by_a_shard_that_had_none():
    """Whoever said that a thousand were dropped could stop a gate."""
    gate, _ = at_work(of_a_downpour, "replica/0/gate/2", Parameters, 1)
    assert is_refused(do(gate, Dropped("ghost", (), Fault.FORM, "why", 10**6)))
    with pytest.raises(DataError, match="shard/2 dropped its last 1000000 pushes"):
        do(gate, Dropped("shard/2", (), Fault.FORM, "why", 10**6))


@pytest.mark.parametrize(
    "changes",
    [{"shard": "ghost"}, {"cut": None}, {"payload": (torch.ones(2),)}, {"payload": (torch.ones(2),) * 9}],
)
def test_the_front_of_a_split_shard_refuses_weights_that_no_part_has(changes):
    front, message = at_work(of_a_downpour, "shard/0", Parameters)
    assert is_refused(do(front, replace(message, **changes)))


def test_a_front_waits_for_no_more_cuts_than_a_stage_pins():
    """It kept every cut of which no part ever sent weights."""
    front, _ = at_work(of_a_downpour, "shard/0", Cut)
    for number in range(2 * staging.PINS_MAX):
        do(front, Cut(CutId("ghost", number)))
    assert len(front.role._waiting) == staging.PINS_MAX


def test_one_who_asks_for_cut_after_cut_leaves_room_for_others():
    gate = gate_alone(nn.Linear(4, 3))
    effects = do(gate, *(Cut(CutId("flood", number)) for number in range(2 * staging.PINS_OF_ONE_MAX)))
    assert len(gate.pins) == staging.PINS_OF_ONE_MAX == len(reports(effects, MessageRefused))
    assert sends(do(gate, Cut(CutId("v", 0))), Cut)


def test_a_shard_lends_to_so_many_gates_and_no_more(monkeypatch):
    """What it keeps of each grew with every name that ever asked."""
    monkeypatch.setattr(sharding, "ASKERS_MAX", 3)
    shard, _ = at_work(of_a_downpour, "shard/2", Push, 10)
    effects = do(shard, Fetch("ghost"), Fetch("ghost"), Fetch("another"))
    assert [type(effect) is Report for effect in effects] == [False, False, True]
    assert "3 gates are lent weights" in effects[-1].record.reason


def test_who_asks_twice_before_a_warm_start_is_over_is_lent_once():
    shard, message = at_work(of_a_downpour, "shard/2", Fetch)
    do(shard, message, *(Fetch("ghost") for _ in range(100)))
    assert list(shard._warm_start.waiting) == ["ghost"]


def test_a_push_of_a_gate_that_was_lent_nothing_is_dropped():
    """Anybody could have a shard learn, and it kept the speed of each."""
    shard, message = at_work(of_a_downpour, "shard/2", Push, 3)
    version = shard.version
    (dropped,) = sends(do(shard, replace(message, asker="ghost")), Dropped)
    assert (dropped.fault, shard.version) == (Fault.UNKNOWN, version)


def test_a_push_with_buffers_without_memory_is_dropped():
    """The shard raised when it looked whether they are finite."""
    shard, message = at_work(of_a_downpour, "shard/0", Push)
    buffers = {name: buffer.to("meta") for name, buffer in message.buffers.items()}
    assert buffers
    (dropped,) = sends(do(shard, replace(message, buffers=buffers)), Dropped)
    assert dropped.fault is Fault.FORM


def test_a_push_that_a_shard_dropped_without_a_reason_is_told_with_one():
    """The gate stopped, as nothing is refused without."""
    gate, message = at_work(of_a_downpour, "replica/0/gate/2", Backward)
    (refused,) = sends(do(gate, Dropped("shard/2", (message.batch,), Fault.FORM, "", 1)), Refused)
    assert refused.reason


# ── sentinels ────────────────────────────────────────────────────────────────────────────────────────


def test_a_sentinel_rests_for_so_many_and_no_more():
    trainer, _ = at_work(of_a_row, "sentinel/a#1", Forward, 3)
    effects = do(trainer, *(Locate(f"ghost/{number}", hold=True) for number in range(base.ASKERS_MAX + 5)))
    assert len(trainer._rest) == base.ASKERS_MAX
    assert len(reports(effects, MessageRefused)) == 5


def test_a_trainer_is_at_rest_only_when_its_reader_says_so_after_it_was_asked():
    """It told where it is with batches under way."""
    trainer, _ = at_work(of_a_row, "sentinel/a#1", Forward, 3)
    do(trainer, Locate("sentinel/c#1", hold=True))
    assert trainer._flights
    assert not sends(do(trainer, AllRead()), Located)


def test_a_trainer_whose_work_is_not_settled_ends_for_nobody_who_says_that_it_is():
    """One that had batches in flight ended when anybody told it that all was applied."""
    trainer, _ = at_work(of_a_downpour, "sentinel/a-0#1", Forward, 3)
    assert not stops(do(trainer, Settled("replica/0/gate/0"), Settled("ghost")))


@pytest.mark.parametrize("payload", [(), [None], {}])
def test_an_output_without_a_tensor_ends_a_trainer_with_an_error_that_says_so(payload):
    """The error was a StopIteration without words."""
    trainer, message = at_work(of_a_row, "sentinel/a#1", Forward)
    with pytest.raises(DataError, match="no tensor in its outputs"):
        do(trainer, replace(message, payload=payload))


@pytest.mark.parametrize("versions", [(), (1, 2), (1, 2, 3, 4)])
def test_a_checkpointer_refuses_a_cut_of_another_number_of_gates(versions):
    checkpointer, message = at_work(of_a_row, "sentinel/c#1", Cut)
    assert is_refused(do(checkpointer, replace(message, versions=versions)))
    assert sends(do(checkpointer, message), Locate)


def test_a_checkpointer_takes_each_cut_and_what_gates_give_of_it_once():
    """A cut that came again had it ask all again; what a gate of no row gave stopped it."""
    checkpointer, message = at_work(of_a_row, "sentinel/c#1", Exported)
    assert not do(checkpointer, replace(message, gate="ghost"))
    assert not do(checkpointer, Cut(message.cut, (9, 9, 9)))
    assert not do(checkpointer, message)
    assert not do(checkpointer, message)


def test_a_checkpoint_has_the_versions_of_its_cut_whatever_is_sent_between():
    checkpointer, message = at_work(of_a_row, "sentinel/c#1", Exported)
    versions = dict(checkpointer._versions)
    do(checkpointer, Cut(message.cut, (9, 9, 9)))
    effects = do(checkpointer, *(replace(message, gate=gate) for gate in checkpointer._row))
    (taken,) = reports(effects, CheckpointTaken)
    assert {gate: stage.version for gate, stage in taken.stages.items()} == versions
