"""The sentinel that takes checkpoints, message by message."""

from __future__ import annotations

import pytest
import torch

from akkordeon.core.actor import After, Report, Send, Stop
from akkordeon.core.checkpoint_messages import GoOn, Joined, Locate, Located, Parted
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import (
    Attach,
    Cut,
    CutId,
    Detach,
    Due,
    Export,
    Exported,
    Forget,
    Release,
    Tick,
    Watch,
)
from akkordeon.core.plain_state import Applied
from akkordeon.core.recovery.messages import ForgetBefore
from akkordeon.core.reports import CheckpointTaken, SentinelEnded
from akkordeon.sentinels.checkpointer import Checkpointer
from akkordeon.sentinels.recipes import Evaluation, Sentinel
from akkordeon.sentinels.roles import CHECKPOINT, KEEP

ME, ROW, A, B = "sentinel/checkpoint#1", ("gate/0", "gate/1"), "sentinel/a#1", "sentinel/b#1"
WEIGHTS = {"w": torch.ones(1)}


def _checkpointer(at_rest=False, role=CHECKPOINT, start=None, **rhythm):
    recipe = Evaluation(role=role, batches=(), loss=None, at_rest=at_rest, **rhythm)
    keeper = Checkpointer(ME, "checkpoint", ROW, "reader/checkpoint#1", recipe, start)
    assert _do(keeper, Joined(A), Joined(B)) == []
    return keeper


def _do(keeper, *messages):
    return [effect for message in messages for effect in keeper.receive(message, 0.0)]


def _cut(number=0):
    return CutId(ME, number)


def _exported(number=0):
    return [Exported(_cut(number), gate, WEIGHTS, {"updates": 3}) for gate in ROW]


def test_under_way_it_cuts_first_and_asks_with_what_the_cut_has():
    keeper = _checkpointer()
    assert _do(keeper, Due()) == [Send("gate/1", Cut(_cut(), whole=True))]
    applied = {A: Applied(7, frozenset({5}))}
    asked = _do(keeper, Cut(_cut(), (4, 5), True, applied))
    assert asked == [
        Send(A, Locate(ME, applied=applied[A], versions=(4, 5))),
        Send(B, Locate(ME, applied=Applied(), versions=(4, 5))),
    ]
    assert _do(keeper, Located(A, {"at": 1})) == []
    assert _do(keeper, Located(B, {"at": 2})) == [Send(gate, Export(_cut())) for gate in ROW]
    *released, report = _do(keeper, *_exported())
    assert released == [Send(gate, Release(_cut())) for gate in ROW]
    taken = report.record
    assert isinstance(taken, CheckpointTaken)
    assert (taken.number, taken.sentinels, taken.random) == (1, {A: {"at": 1}, B: {"at": 2}}, None)
    assert [taken.stages[gate].version for gate in ROW] == [5, 4]
    assert (taken.stages["gate/0"].applied, taken.stages["gate/1"].applied) == ({}, applied)


def test_where_a_run_is_repeatable_it_has_all_come_to_rest_first_and_lets_them_go_last():
    keeper = _checkpointer(at_rest=True)
    assert _do(keeper, Due()) == [Send(who, Locate(ME, hold=True)) for who in (A, B)]
    assert _do(keeper, Located(B, {"at": 2})) == []
    torch.manual_seed(5)
    assert _do(keeper, Located(A, {"at": 1})) == [Send("gate/1", Cut(_cut(), whole=True))]
    asked = _do(keeper, Cut(_cut(), (4, 5), True))
    assert asked == [Send(who, Locate(ME, versions=(4, 5))) for who in (A, B)]
    exporting = _do(keeper, Located(A, {"at": 1}), Located(B, {"at": 3}))
    assert exporting == [Send(gate, Export(_cut())) for gate in ROW]
    effects = _do(keeper, *_exported())
    assert effects[-1].record.sentinels == {A: {"at": 1}, B: {"at": 3}}
    assert effects[2:4] == [Send(who, GoOn(ME)) for who in (A, B)]
    assert torch.equal(effects[4].record.random, torch.get_rng_state())


def test_one_that_goes_on_from_a_start_takes_none_but_lets_all_go():
    random = torch.get_rng_state()
    torch.manual_seed(9)
    keeper = _checkpointer(
        at_rest=True, start={"rounds": 3, "random": random, "due": False}, every_updates=10
    )
    began = _do(keeper, Attach())
    assert began == [
        Send("gate/0", Watch(ME, 10)),
        *(Send(who, Locate(ME, hold=True)) for who in (A, B)),
    ]
    effects = _do(keeper, Located(A, {}), Located(B, {}))
    assert effects[2:] == [Send(who, GoOn(ME)) for who in (A, B)]
    assert torch.equal(torch.get_rng_state(), random)
    _do(keeper, Due(), Located(A, {}), Located(B, {}), Cut(_cut(1), (4, 5), True))
    _do(keeper, Located(A, {}), Located(B, {}))
    assert _do(keeper, *_exported(1))[-1].record.number == 4


@pytest.mark.parametrize("message", [Due(last=True), Detach()])
def test_one_that_is_told_to_end_before_all_go_on_from_a_start_ends(message):
    keeper = _checkpointer(at_rest=True, start={"rounds": 3, "random": None, "due": False})
    _do(keeper, Attach(), message, Located(A, {}))
    effects = _do(keeper, Located(B, {}))
    if isinstance(message, Due):
        assert effects[-2:] == [Send(who, Locate(ME, hold=True)) for who in (A, B)]
    else:
        assert effects[-1] == Stop()


def test_nobody_is_waited_for_who_has_ended():
    keeper = _checkpointer(at_rest=True)
    _do(keeper, Due(), Located(A, {}))
    assert _do(keeper, Parted(B)) == [Send("gate/1", Cut(_cut(), whole=True))]


def test_one_that_ends_after_the_cut_has_another_made():
    keeper = _checkpointer()
    _do(keeper, Due(), Cut(_cut(), (4, 5), True, {A: Applied(7)}))
    effects = _do(keeper, Parted(B))
    assert effects == [*(Send(g, ForgetBefore(ME, 1)) for g in ROW), Send("gate/1", Cut(_cut(1), whole=True))]
    assert _do(keeper, Cut(_cut(), (4, 5), True), Located(A, {})) == []  # of the cut given up


def test_one_that_ends_while_the_cut_is_under_way_has_another_made():
    """The checkpoint had where it ended, and weights that had not learned all of that."""
    keeper = _checkpointer()
    _do(keeper, Due())
    effects = _do(keeper, Parted(B))
    assert effects == [*(Send(g, ForgetBefore(ME, 1)) for g in ROW), Send("gate/1", Cut(_cut(1), whole=True))]
    assert _do(keeper, Cut(_cut(), (4, 5), True)) == []
    asked = _do(keeper, Cut(_cut(1), (4, 5), True, {A: Applied(7)}))
    assert asked == [Send(A, Locate(ME, applied=Applied(7), number=1, versions=(4, 5)))]


def test_one_that_ends_at_rest_is_in_the_checkpoint_where_it_rested():
    keeper = _checkpointer(at_rest=True)
    _do(keeper, Due(), Located(A, {"at": 1}), Located(B, {"at": 2}))
    assert _do(keeper, Parted(B)) == []
    _do(keeper, Cut(_cut(), (4, 5), True), Located(A, {"at": 1}))
    taken = next(effect.record for effect in _do(keeper, *_exported()) if isinstance(effect, Report))
    assert taken.sentinels == {A: {"at": 1}, B: {"at": 2}}


def test_what_falls_due_meanwhile_is_one_more_and_the_last_ends_it():
    keeper = _checkpointer(every_s=2.0)
    assert _do(keeper, Attach()) == [After(2.0, Tick())]
    _do(keeper, Tick(), Tick(), Due(last=True), Cut(_cut(), (4, 5), True))
    _do(keeper, Located(A, {}), Located(B, {}))
    assert _do(keeper, *_exported())[-1] == Send("gate/1", Cut(_cut(1), whole=True))
    _do(keeper, Cut(_cut(1), (4, 5), True), Located(A, {}), Located(B, {}))
    ended, stop = _do(keeper, *_exported(1))[-2:]
    assert ended == Report(SentinelEnded(ME, keeper.batches))
    assert stop == Stop()


def test_one_that_is_asked_for_once_has_the_checkpoint_as_its_result():
    keeper = _checkpointer(role=KEEP)
    assert _do(keeper, Attach()) == [Send("gate/1", Cut(_cut(), whole=True))]
    _do(keeper, Cut(_cut(), (4, 5), True), Located(A, {}), Located(B, {}))
    ended = _do(keeper, *_exported())[-2].record
    assert isinstance(ended.result, CheckpointTaken)


def test_one_that_is_dropped_leaves_no_pin_and_nobody_at_rest():
    keeper = _checkpointer(at_rest=True, every_updates=3)
    _do(keeper, Due())
    effects = _do(keeper, Detach(drop=True))
    assert effects[0] == Send("gate/0", Watch(ME, 0))
    assert effects[1:5] == [*(Send(g, Forget(ME)) for g in ROW), *(Send(who, GoOn(ME)) for who in (A, B))]
    assert effects[-1] == Stop()


def test_what_a_gate_cannot_keep_is_its_failure():
    keeper = _checkpointer()
    _do(keeper, Due(), Cut(_cut(), (4, 5), True), Located(A, {}), Located(B, {}))
    with pytest.raises(RecipeError, match="no plain data"):
        _do(keeper, Exported(_cut(), "gate/0", WEIGHTS, RecipeError("no plain data")))


def test_its_rhythm_is_checked():
    with pytest.raises(RecipeError, match="every_s"):
        Sentinel.checkpoint(every_s=0)


def test_an_answer_about_a_cut_that_was_given_up_is_not_taken_for_one_about_the_next():
    """It would say less than the weights have learned, and batches would be trained twice after a resume."""
    keeper = _checkpointer()
    _do(keeper, Due(), Cut(_cut(), (4, 5), True, {A: Applied(7)}), Parted(B))
    asked = _do(keeper, Cut(_cut(1), (6, 7), True, {A: Applied(9)}))
    assert asked == [Send(A, Locate(ME, applied=Applied(9), number=1, versions=(6, 7)))]
    assert _do(keeper, Located(A, {"at": 7})) == []
    assert _do(keeper, Located(A, {"at": 9}, number=1)) == [Send(gate, Export(_cut(1))) for gate in ROW]


def test_what_fell_due_meanwhile_is_in_the_checkpoint_and_is_begun_by_whoever_goes_on_from_it():
    """A run with fewer updates between checkpoints than batches in flight did not have the bits otherwise."""
    keeper = _checkpointer()
    _do(keeper, Due(), Due(), Cut(_cut(), (4, 5), True), Located(A, {}), Located(B, {}))
    taken = next(effect.record for effect in _do(keeper, *_exported()) if isinstance(effect, Report))
    assert taken.due
    again = _checkpointer(at_rest=True, start={"rounds": 1, "random": None, "due": True})
    _do(again, Attach(), Located(A, {}))
    effects = _do(again, Located(B, {}))
    assert effects[2:4] == [Send(who, GoOn(ME)) for who in (A, B)]
    assert effects[4:] == [Send(who, Locate(ME, hold=True)) for who in (A, B)]
