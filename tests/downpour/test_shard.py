"""A shard at work: lending, learning, dropping, warm start, speeds; and that it is a stage like any other."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from tests.support.harness import do, reports, sends, stops
from torch import nn

import akkordeon as ak
from akkordeon.core.messages import Batch, Close, Cut, CutId, Evaluate, Export, Exported, Fault, Forget, Probe
from akkordeon.core.reports import GateLeft, ShardStatus
from akkordeon.core.shard_messages import Dropped, Fetch, Left, Parameters, Push, Settle, Settled
from akkordeon.downpour.shard import DROPPED_MAX, ParameterShard, ShardActor
from akkordeon.pipeline.stage import Position

SGD = partial(torch.optim.SGD, lr=0.5)


def shard(module=None, optimizer=SGD, **recipe) -> ShardActor:
    """The only shard of a row."""
    module = nn.Linear(2, 1, bias=False) if module is None else module
    return ShardActor(ParameterShard(module, optimizer, **recipe), Position("shard/0", 0))


def fetched(actor: ShardActor, asker: str = "r/0", now_s: float = 0.0) -> Parameters:
    (answer,) = sends(do(actor, Fetch(asker), now_s=now_s), Parameters)
    return answer


def push(version: int, *payload, asker: str = "r/0", steps: int = 1, **more) -> Push:
    return Push(asker, version, steps, payload, **more)


def status(actor: ShardActor) -> ShardStatus:
    (found,) = reports(do(actor, Probe(1)), ShardStatus)
    return found


def test_it_lends_the_weights_it_has_and_says_how_many_updates_they_had():
    actor = shard()
    before = fetched(actor)
    assert (before.version, before.shard) == (0, "shard/0")
    do(actor, push(0, torch.ones(1, 2)))
    after = fetched(actor)
    assert after.version == 1
    assert torch.equal(after.payload[0], before.payload[0] - 0.5)


def test_what_was_lent_or_pushed_is_never_written_to():
    actor = shard(optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9, nesterov=True, foreach=True))
    lent = fetched(actor).payload[0]
    pushed = torch.ones(1, 2)
    before = lent.clone()
    for _ in range(3):
        do(actor, push(0, pushed))
    assert torch.equal(lent, before)
    assert torch.equal(pushed, torch.ones(1, 2))


def test_adagrad_is_the_papers_formula_for_each_parameter_of_the_sums_pushed():
    actor = shard(optimizer=partial(torch.optim.Adagrad, lr=0.1))
    w = fetched(actor).payload[0].clone()
    squares = torch.zeros(1, 2)
    for _ in range(20):
        g = torch.randn(1, 2) * 16
        do(actor, push(0, g))
        squares += g**2
        w -= 0.1 * g / (squares.sqrt() + 1e-10)
    torch.testing.assert_close(fetched(actor).payload[0], w)


def test_staleness_is_the_updates_since_the_pushers_weights_and_too_stale_is_dropped_and_counted():
    actor = shard(max_staleness=1)
    for i in range(3):
        fetched(actor, f"r/{i}")
    for i in range(3):
        do(actor, push(0, torch.ones(1, 2), asker=f"r/{i}"))
    found = status(actor)
    assert found.staleness == {0: 1, 1: 1}
    assert found.version == 2
    assert found.pushes == 3
    assert found.refused == {"too_stale": 1}


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        ((torch.ones(2, 2),), "form"),
        ((torch.ones(1, 2), torch.ones(1)), "form"),
        ((torch.tensor([[torch.nan, 1.0]]),), "not_finite"),
    ],
)
def test_a_push_it_cannot_apply_is_counted_and_changes_nothing(payload, fault):
    actor = shard()
    before = fetched(actor).payload[0]
    do(actor, push(0, *payload))
    assert torch.equal(fetched(actor).payload[0], before)
    assert status(actor).refused == {fault: 1}
    assert status(actor).version == 0


def test_a_push_that_is_dropped_is_told_with_its_batches_and_how_many_were_before_it():
    actor = shard(max_staleness=0)
    fetched(actor)
    batches = (Batch("s", 3), Batch("s", 4))
    bad = push(0, torch.full((1, 2), torch.inf), batches=batches)
    first, second = sends(do(actor, bad, bad), Dropped)
    assert (first.shard, first.batches, first.fault) == ("shard/0", batches, Fault.NOT_FINITE)
    assert (first.in_a_row, second.in_a_row) == (1, 2)
    assert sends(do(actor, push(0, torch.ones(1, 2)))) == []
    (again,) = sends(do(actor, push(1, torch.full((1, 2), torch.inf))), Dropped)
    assert again.in_a_row == 1
    (stale,) = sends(do(actor, push(0, torch.ones(1, 2))), Dropped)
    assert (stale.fault, stale.in_a_row) == (Fault.TOO_STALE, 1)


def test_one_over_tau_divides_the_gradient():
    actor = shard(staleness=ak.InverseStaleness())
    w = [fetched(actor).payload[0]]
    for _ in range(4):
        do(actor, push(0, torch.ones(1, 2)))
        w.append(fetched(actor).payload[0])
    moved = [(a - b)[0, 0].item() for a, b in pairwise(w)]
    assert moved == pytest.approx([0.5, 0.5, 0.25, 0.5 / 3])


def test_delay_compensation_goes_from_the_weights_that_replica_was_lent():
    """By hand, constant variant: g + λ·g²·(w − w_bak) with w_bak of each replica its own."""
    actor = shard(staleness=ak.DelayCompensation("constant", strength=0.3))
    bak = {"r/0": fetched(actor, "r/0").payload[0].clone()}
    g = torch.tensor([[1.0, -2.0]])
    do(actor, push(0, g, asker="r/0"))
    w = bak["r/0"] - 0.5 * g
    bak["r/1"] = w.clone()
    assert fetched(actor, "r/1").version == 1
    do(actor, push(0, g, asker="r/0"))
    w = w - 0.5 * (g + 0.3 * g * g * (w - bak["r/0"]))
    do(actor, push(1, g, asker="r/1"))
    w = w - 0.5 * (g + 0.3 * g * g * (w - bak["r/1"]))
    torch.testing.assert_close(fetched(actor).payload[0], w)


def test_delay_compensation_drops_what_goes_back_to_weights_it_never_lent():
    actor = shard(staleness=ak.DelayCompensation())
    do(actor, push(0, torch.ones(1, 2)))
    assert status(actor).refused == {Fault.UNKNOWN.name.lower(): 1}


def test_of_what_it_lent_it_keeps_only_what_a_push_may_still_go_back_to():
    actor = shard(staleness=ak.DelayCompensation())
    for version in range(10):
        fetched(actor)
        do(actor, push(version, torch.ones(1, 2)))
    assert list(actor._lent["r/0"]) == [9]
    do(actor, Forget("r/0"))
    assert actor._lent == {}


def test_nothing_stays_of_a_replica_that_left():
    actor = shard(staleness=ak.DelayCompensation(), steps_by_speed=4)
    fetched(actor)
    do(actor, push(0, torch.full((1, 2), torch.inf)), Left("r/0"))
    assert not actor._lent
    assert not actor._forgotten
    assert not actor._dropped
    assert not actor._steps_by_speed._since_s


def test_nothing_stays_of_a_replica_that_died_while_pushes_of_it_were_on_their_way():
    """Late pushes brought back what it was lent, and a speed that the others were held to."""
    actor = shard(staleness=ak.DelayCompensation(), steps_by_speed=4)
    fetched(actor)
    do(actor, Forget("r/0"))
    for now_s in (1.0, 2.0):
        do(actor, push(0, torch.ones(1, 2), fetch=True), now_s=now_s)
    assert not actor._lent
    assert not actor._dropped
    assert not actor._merger.knows("r/0")
    assert not actor._steps_by_speed._per_s


def test_no_gradient_is_not_a_gradient_of_zero():
    module = nn.Linear(2, 1)
    actor = shard(module, partial(torch.optim.SGD, lr=0.5, weight_decay=0.1))
    before = fetched(actor).payload
    do(actor, push(0, torch.zeros(1, 2), None))
    after = fetched(actor).payload
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])


def test_weights_that_do_not_train_are_neither_lent_nor_pushed():
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    actor = shard(module)
    assert [tuple(t.shape) for t in fetched(actor).payload] == [(1, 2)]
    do(actor, push(0, torch.ones(1, 2)))
    assert status(actor).version == 1


def test_buffers_are_those_of_the_last_push():
    actor = shard(nn.BatchNorm1d(2))
    fetched(actor)
    values = (torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor(5))
    buffers = dict(zip(("running_mean", "running_var", "num_batches_tracked"), values, strict=True))
    do(actor, push(0, torch.ones(2), torch.ones(2), buffers=buffers))
    cut = CutId("s", 0)
    (exported,) = sends(do(actor, Cut(cut), Export(cut)), Exported)
    assert torch.equal(exported.state["running_mean"], values[0])


def test_buffers_are_lent_with_the_first_weights_and_not_again():
    actor = shard(nn.BatchNorm1d(2))
    first, second = fetched(actor), fetched(actor)
    assert [tuple(buffer.shape) for buffer in first.buffers.values()] == [(2,), (2,), ()]
    assert second.buffers == {}


def test_a_cut_pins_the_master_weights():
    actor = shard()
    cut = CutId("s", 0)
    (passed_on,) = sends(do(actor, Cut(cut)), Cut)
    assert passed_on.versions == (0,)
    before = fetched(actor).payload[0]
    do(actor, push(0, torch.ones(1, 2)))
    (exported,) = sends(do(actor, Export(cut)), Exported)
    assert torch.equal(exported.state["weight"], before)


def test_evaluating_a_module_that_writes_to_its_weights_leaves_those_of_all_others_alone():
    """An embedding with max_norm scales the rows it looks up, in evaluation mode as well."""
    actor = shard(nn.Embedding(4, 3, max_norm=0.1))
    lent = fetched(actor).payload[0]
    before, cut = lent.clone(), CutId("v", 0)
    do(actor, Cut(cut))
    outputs = [
        sends(do(actor, Evaluate(Batch("v", i), torch.tensor([0, 1]), cut)), Evaluate)[0].payload
        for i in range(2)
    ]
    assert torch.equal(lent, before)
    assert all(output.norm(dim=1).max() < 0.11 for output in outputs)


def test_it_leaves_the_master_weights_as_its_last_words():
    actor = shard()
    effects = do(actor, push(0, torch.ones(1, 2)), Close())
    (left,) = reports(effects, GateLeft)
    assert torch.equal(left.state["weight"], fetched(actor).payload[0])
    assert stops(effects)


def test_settled_comes_after_whatever_was_pushed_before():
    actor = shard()
    fetched(actor)
    (answer,) = sends(do(actor, push(0, torch.ones(1, 2)), Settle("r/0")))
    assert answer == Settled("shard/0")


def test_it_counts_bytes_as_they_travel():
    actor = shard(nn.Linear(2, 3))
    fetched(actor)
    do(actor, push(0, torch.ones(3, 2, dtype=torch.int8), torch.ones(3, dtype=torch.int8), scales=(0.5, 2.0)))
    found = status(actor)
    assert (found.bytes_out, found.bytes_in) == (36, 9)
    assert (found.fetches, found.pushes) == (1, 1)


def test_a_compressed_push_is_applied_at_its_scale():
    actor = shard()
    before = fetched(actor).payload[0]
    do(actor, push(0, torch.tensor([[127, -64]], dtype=torch.int8), scales=(0.01,)))
    torch.testing.assert_close(fetched(actor).payload[0], before - 0.5 * torch.tensor([[1.27, -0.64]]))


# ── warm start ───────────────────────────────────────────────────────────────────────────────────────


def test_the_first_replica_goes_alone_until_its_warm_start_is_over():
    actor = shard(warm_start=2)
    fetched(actor, "r/1")
    assert do(actor, Fetch("r/0"), Fetch("r/2")) == []
    assert status(actor).waiting == 2
    assert do(actor, push(0, torch.ones(1, 2), asker="r/1")) == []
    released = do(actor, push(0, torch.ones(1, 2), asker="r/1"))
    assert [(effect.to, effect.message.version) for effect in released] == [("r/0", 2), ("r/2", 2)]
    assert fetched(actor, "r/3").version == 2


@pytest.mark.parametrize("leaving", [Settle("r/1"), Forget("r/1"), Left("r/1")])
def test_the_others_begin_when_the_first_has_no_more_to_push(leaving):
    actor = shard(warm_start=1000)
    fetched(actor, "r/1")
    do(actor, Fetch("r/0"))
    assert [m.version for m in sends(do(actor, leaving), Parameters)] == [0]


def test_who_settles_while_waiting_still_waits():
    """One sentinel of a replica ended, and another waited for ever for its replica's first weights."""
    actor = shard(warm_start=1)
    fetched(actor, "r/1")
    do(actor, Fetch("r/0"), Settle("r/0"))
    (released,) = do(actor, push(0, torch.ones(1, 2), asker="r/1"))
    assert released.to == "r/0"


def test_who_leaves_while_waiting_is_sent_nothing():
    actor = shard(warm_start=1)
    fetched(actor, "r/1")
    do(actor, Fetch("r/0"), Forget("r/0"))
    assert do(actor, push(0, torch.ones(1, 2), asker="r/1")) == []


def test_who_asked_before_it_died_is_not_taken_for_the_first():
    actor = shard(warm_start=1000)
    assert do(actor, Forget("r/1"), Fetch("r/1")) == []
    assert fetched(actor, "r/0").version == 0


# ── steps by speed ───────────────────────────────────────────────────────────────────────────────────


def test_a_replica_is_told_its_steps_with_its_weights():
    actor = shard(steps_by_speed=8)
    assert fetched(actor, "a", now_s=0.0).push_every is None
    fetched(actor, "b", now_s=0.0)
    do(actor, push(0, torch.ones(1, 2), asker="a", steps=8), now_s=8.0)
    do(actor, push(0, torch.ones(1, 2), asker="b", steps=8), now_s=20.0)
    assert fetched(actor, "b", now_s=20.0).push_every == 3
    assert fetched(actor, "a", now_s=20.0).push_every == 8


def test_one_over_tau_is_a_rule_for_gates_too_and_leaves_what_it_is_given_alone():
    g = torch.tensor([2.0, 4.0])
    rule = ak.InverseStaleness()
    for staleness, wanted in ((0, [2.0, 4.0]), (1, [2.0, 4.0]), (4, [0.5, 1.0])):
        corrected, nothing = rule.correct([g, None], [], [], staleness, None)
        assert corrected.tolist() == wanted
        assert nothing is None
    assert g.tolist() == [2.0, 4.0]
    assert ak.Gate(nn.Linear(2, 2), SGD, staleness=rule).staleness.keeps_weights


@pytest.mark.parametrize(
    ("buffer", "fault"),
    [(torch.zeros(7), Fault.FORM), ("x", Fault.FORM), (torch.full((1,), float("nan")), Fault.NOT_FINITE)],
)
def test_a_push_with_a_buffer_that_cannot_be_is_dropped_before_anything_is_learned(buffer, fault):
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    actor = shard(module)
    fetched(actor)
    before = {name: tensor.clone() for name, tensor in actor.buffers.now.items()}
    gradients = [torch.ones_like(weight) for weight in module.parameters()]
    (dropped,) = sends(do(actor, push(0, *gradients, buffers={"1.running_mean": buffer})), Dropped)
    assert dropped.fault is fault
    assert actor.version == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in actor.buffers.now.items())


def test_a_gate_that_goes_on_after_a_thousand_dropped_pushes_is_read_no_more():
    actor = shard()
    fetched(actor)
    answers = [do(actor, push(0, torch.ones(3))) for _ in range(DROPPED_MAX + 5)]
    assert [bool(answer) for answer in answers] == [True] * DROPPED_MAX + [False] * 5
    assert do(actor, Fetch("r/0", is_first=True)) == []
    assert fetched(actor, "r/1").version == 0
