"""A gate that is made again from its state goes on as the one it was kept of, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import akkordeon as ak
from akkordeon.core.actor import Send
from akkordeon.core.errors import RecipeError
from akkordeon.core.messages import Backward, Batch, Cut, CutId, Export, Exported, Forward
from akkordeon.core.plain_state import Applied, StageState
from akkordeon.pipeline.gate_actor import GateActor
from akkordeon.pipeline.learning.ledger import LISTED_MAX, SENTINELS_MAX, Ledger
from akkordeon.pipeline.stage import Position


def _warm(parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def _grouped(named_parameters):
    named = dict(named_parameters)
    return torch.optim.SGD(
        [
            {"params": [p for n, p in named.items() if n.endswith("bias")], "weight_decay": 0.0},
            {"params": [p for n, p in named.items() if n.endswith("weight")]},
        ],
        lr=0.05,
        momentum=0.9,
        weight_decay=0.1,
    )


GATES = {
    "adamw with a scheduler": ak.Gate(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), _warm),
    "sgd with groups by name": ak.Gate(nn.Linear(3, 2), _grouped),
    "delay compensation": ak.Gate(
        nn.Linear(3, 2), lambda ps: torch.optim.SGD(ps, lr=0.1), ak.DelayCompensation("adaptive")
    ),
    "nothing to learn with": ak.Gate(nn.Linear(3, 2)),
}


def _step(actor, number):
    generator = torch.Generator().manual_seed(number)
    batch = Batch("sentinel/a#1", number)
    (forward,) = actor.receive(Forward(batch, torch.randn(5, 3, generator=generator)), 0.0)
    gradient = torch.randn(forward.message.payload.shape, generator=generator)
    for _ in actor.receive(Backward(batch, gradient), 0.0):
        pass


def _kept(actor):
    cut = CutId("asker", 0)
    (pinned,) = actor.receive(Cut(cut, whole=True), 0.0)
    _step(actor, 99)  # what is learned after the cut is not in it
    (exported,) = actor.receive(Export(cut), 0.0)
    assert isinstance(exported.message, Exported)
    return StageState(pinned.message.versions[-1], exported.message.state, exported.message.learner)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_a_gate_made_again_goes_on_to_the_bit(gate):
    torch.manual_seed(0)
    position = Position("gate/0", 0)
    one, other = GateActor(gate, position), GateActor(gate, position)
    for number in range(3):
        _step(one, number)
        _step(other, number)
    again = GateActor(gate, position, _kept(other))
    assert again.version == one.version
    for number in range(3, 8):
        _step(one, number)
        _step(again, number)
    for mine, theirs in zip(one.weights.now, again.weights.now, strict=True):
        assert torch.equal(mine, theirs)
    for name, mine in one.buffers.now.items():
        assert torch.equal(mine, again.buffers.now[name])


# An optimizer that goes on from a state keeps its very tensors. A gate made anew wrote its momentum into the
# snapshot, so made anew from there once more it had another one; so had a run taken up twice from a
# checkpoint in memory.
def test_a_state_that_a_gate_goes_on_from_stays_as_it_is():
    position, gate = Position("gate/0", 0), GATES["sgd with groups by name"]
    one = GateActor(gate, position)
    _step(one, 0)
    kept = _kept(one)
    ended = []
    for _ in range(2):
        again = GateActor(gate, position, kept)
        for number in range(1, 4):
            _step(again, number)
        ended.append(again.weights.now)
    for first, second in zip(*ended, strict=True):
        assert torch.equal(first, second)


def test_the_state_of_another_optimizer_is_refused_in_a_sentence():
    position = Position("gate/0", 0)
    kept = _kept(GateActor(GATES["adamw with a scheduler"], position))
    other = ak.Gate(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), lambda ps: torch.optim.AdamW(ps, lr=0.01)
    )
    with pytest.raises(
        RecipeError, match="gate/0 learned with the scheduler CosineAnnealingLR, and its recipe has None"
    ):
        GateActor(other, position, kept)
    other = ak.Gate(other.module, lambda ps: torch.optim.SGD(ps, lr=0.01))
    with pytest.raises(RecipeError, match="gate/0 learned with the optimizer AdamW, and its recipe has SGD"):
        GateActor(other, position, kept)


def test_the_state_of_a_rule_that_keeps_other_tensors_is_refused_in_a_sentence():
    module, optimizer = nn.Linear(3, 4), lambda ps: torch.optim.SGD(ps, lr=0.01)
    rules = [ak.DelayCompensation("adaptive"), ak.DelayCompensation("constant")]
    adaptive, constant = (ak.Gate(module, optimizer, staleness=rule) for rule in rules)
    kept = _kept(GateActor(adaptive, Position("gate/0", 0)))
    with pytest.raises(RecipeError, match=r"tensors of the staleness rule \['bias', 'weight'\]"):
        GateActor(constant, Position("gate/0", 0), kept)


def test_a_ledger_lists_what_is_missing_below_the_highest_number():
    ledger = Ledger({})
    for number in (0, 1, 4, 3):
        ledger.add(Batch("a", number))
    assert ledger.applied() == {"a": Applied(5, frozenset({2}))}
    assert [number in ledger.applied()["a"] for number in (2, 3, 5)] == [False, True, False]
    ledger.forget("a", 2)
    assert ledger.applied() == {"a": Applied(5)}
    ledger.add(Batch("a", 3 * LISTED_MAX))
    assert len(ledger.applied()["a"].missing) == LISTED_MAX
    ledger.forget("a", None)
    assert ledger.applied() == {}


def test_the_last_gate_says_which_batches_a_cut_has():
    row = [
        GateActor(GATES["nothing to learn with"], Position("gate/0", 0, next="gate/1")),
        GateActor(
            ak.Gate(nn.Linear(2, 2), lambda ps: torch.optim.SGD(ps, 0.1)),
            Position("gate/1", 1, previous="gate/0"),
        ),
    ]
    (forward,) = row[1].receive(Forward(Batch("s", 0), torch.randn(5, 2)), 0.0)
    for _ in row[1].receive(Backward(Batch("s", 0), forward.message.payload), 0.0):
        pass
    (cut,) = row[1].receive(Cut(CutId("asker", 0), whole=True), 0.0)
    (came,) = row[0].receive(cut.message, 0.0)
    assert came == Send("asker", Cut(CutId("asker", 0), (1, 0), True, {"s": Applied(1)}))


def test_a_ledger_gives_up_sentinels_it_has_not_heard_of_for_long_and_keeps_those_at_work():
    ledger = Ledger({"steady": Applied(7)})
    for number in range(3 * SENTINELS_MAX):
        ledger.add(Batch(f"visitor/{number}", 0))
        if number % 1000 == 0:
            ledger.add(Batch("steady", 7 + number // 1000))
    known = ledger.applied()
    assert known["steady"] == Applied(8 + (3 * SENTINELS_MAX - 1) // 1000)
    assert len(known) <= 2 * SENTINELS_MAX
    assert f"visitor/{3 * SENTINELS_MAX - 1}" in known
