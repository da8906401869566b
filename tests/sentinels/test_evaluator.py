"""A sentinel that works on cuts, driven by hand: rounds, results, the best weights, an orderly end."""

from __future__ import annotations

import pytest
import torch
from tests.support.harness import do, reports, sends, stops
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.actor import After
from akkordeon.core.errors import DataError
from akkordeon.core.messages import (
    Attach,
    Batch,
    Close,
    Cut,
    CutId,
    Detach,
    Due,
    EpochEnd,
    Evaluate,
    Export,
    Exported,
    Fault,
    Forget,
    Item,
    Probe,
    Pull,
    Refused,
    Release,
    Tick,
    Watch,
)
from akkordeon.core.plain_state import CutStates
from akkordeon.core.reports import BestKept, LastKept, RoundDone, SentinelEnded, SentinelStatus
from akkordeon.sentinels.evaluator import Evaluator
from akkordeon.sentinels.recipes import Evaluation
from akkordeon.sentinels.roles import EXPORT

ME, ROW = "sentinel/vdp#1", ("gate/0", "gate/1")


def of(recipe) -> Evaluator:
    return Evaluator(ME, "vdp", ROW, "reader/vdp#1", recipe)


def validator(loss=F.cross_entropy, **recipe) -> Evaluator:
    return of(ak.Sentinel.validate([], loss, **recipe))


def item(size: int = 4) -> Item:
    return Item(torch.randn(size, 6), torch.zeros(size, dtype=torch.int64))


def cut(number: int) -> CutId:
    return CutId(ME, number)


def home(number: int, version: int | None = None) -> Cut:
    """A cut that has come back, of another version each if that is not said."""
    return Cut(cut(number), (number if version is None else version,) * 2)


def result(number: int, of_cut: int = 0, y=None) -> Evaluate:
    return Evaluate(Batch(ME, number), torch.randn(4, 3) if y is None else y, cut(of_cut))


def one_round(evaluator, number: int = 0, first: int = 0, y=None, now_s: float = 0.0) -> list:
    """What comes of a whole round with one batch, from its cut to its end."""
    end = EpochEnd(last=False)
    return do(evaluator, home(number), item(), end, result(first, number, y), now_s=now_s)


def test_a_round_is_a_cut_then_batches_then_a_report_and_a_release():
    evaluator = validator()
    assert do(evaluator, Attach()) == []
    (begun,) = do(evaluator, Due(), now_s=5.0)
    assert (begun.to, begun.message) == ("gate/1", Cut(cut(0)))
    assert sends(do(evaluator, home(0, 17))) == [Pull(2, 0)]
    (sent,) = sends(do(evaluator, item()), Evaluate)
    assert (sent.batch, sent.cut) == (Batch(ME, 0), cut(0))
    assert do(evaluator, EpochEnd(last=False)) == []
    effects = do(evaluator, result(0), now_s=7.0)
    assert [(e.to, e.message) for e in effects[:2]] == [(gate, Release(cut(0))) for gate in ROW]
    (done,) = reports(effects, RoundDone)
    assert (done.sentinel, done.role, done.round, done.samples) == ("vdp", "validate", 1, 4)
    assert (done.seconds, done.version) == (2.0, 17)
    assert not stops(effects)


def test_no_more_batches_are_under_way_than_were_asked_for():
    evaluator = validator(in_flight=3)
    do(evaluator, Due())
    assert sends(do(evaluator, home(0))) == [Pull(3, 0)]
    assert len(sends(do(evaluator, *(item() for _ in range(5))), Evaluate)) == 3
    assert len(sends(do(evaluator, result(0)), Evaluate)) == 1


def test_what_falls_due_during_a_round_makes_one_round_more_and_not_many():
    evaluator = validator()
    do(evaluator, Due())
    assert do(evaluator, Due(), Due(), Due()) == []
    assert sends(one_round(evaluator), Cut) == [Cut(cut(1))]
    assert sends(one_round(evaluator, 1, 1), Cut) == []


def test_after_the_last_round_it_ends():
    evaluator = validator()
    do(evaluator, Due())
    do(evaluator, Due(last=True))
    effects = one_round(evaluator)
    assert not stops(effects)
    effects = one_round(evaluator, 1, 1)
    assert len(reports(effects, RoundDone)) == 1
    assert stops(effects)
    assert sends(effects, Close) == [Close()]


def test_a_round_is_left_out_where_nobody_has_learned_since_the_one_before():
    evaluator = validator()
    do(evaluator, Due())
    one_round(evaluator)
    do(evaluator, Due())
    effects = do(evaluator, home(1, version=0))
    assert [(e.to, e.message) for e in effects] == [(gate, Release(cut(1))) for gate in ROW]
    do(evaluator, Due())
    (done,) = reports(one_round(evaluator, 2, 1), RoundDone)
    assert (done.round, done.version) == (2, 2)


def test_a_round_is_made_if_any_gate_has_learned():
    evaluator = validator()
    do(evaluator, Due())
    one_round(evaluator)
    do(evaluator, Due())
    assert sends(do(evaluator, Cut(cut(1), (1, 0)))) == [Pull(2, 1)]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_it_ends_without_a_last_round_where_nobody_has_learned_since_the_one_before(when):
    evaluator = validator()
    do(evaluator, Due())
    if when == "meanwhile":
        do(evaluator, Due(last=True))
    one_round(evaluator)
    if when == "before":
        do(evaluator, Due(last=True))
    effects = do(evaluator, home(1, version=0))
    assert sends(effects, Release) == [Release(cut(1))] * 2
    assert reports(effects, RoundDone) == []
    assert stops(effects)


def test_detached_while_its_cut_is_on_its_way_it_ends_though_there_is_no_round():
    evaluator = validator()
    do(evaluator, Due())
    one_round(evaluator)
    do(evaluator, Due(), Detach())
    assert stops(do(evaluator, home(1, version=0)))


def test_what_falls_due_while_a_cut_comes_back_as_it_was_asks_for_another():
    evaluator = validator()
    do(evaluator, Due())
    one_round(evaluator)
    do(evaluator, Due(), Due())
    assert sends(do(evaluator, home(1, version=0)), Cut) == [Cut(cut(2))]


def test_a_rhythm_in_seconds_ticks_on():
    evaluator = validator(every_s=3.0)
    assert do(evaluator, Attach()) == [After(3.0, Tick())]
    timer, begun = do(evaluator, Tick())
    assert timer == After(3.0, Tick())
    assert begun.message == Cut(cut(0))


def test_a_rhythm_in_updates_watches_the_first_gate_until_the_end():
    evaluator = validator(every_updates=50)
    (watch,) = do(evaluator, Attach())
    assert (watch.to, watch.message) == ("gate/0", Watch(ME, 50))
    assert sends(do(evaluator, Detach()), Watch) == [Watch(ME, 0)]


def test_a_test_makes_one_round_at_once_and_ends():
    evaluator = of(ak.Sentinel.test([], F.cross_entropy, scores={"accuracy": ak.accuracy}))
    assert sends(do(evaluator, Attach())) == [Cut(cut(0))]
    effects = one_round(evaluator, y=torch.tensor([[1.0, 0.0, 0.0]] * 4))
    (done,) = reports(effects, RoundDone)
    assert (done.role, done.scores) == ("test", {"accuracy": 1.0})
    assert stops(effects)


def test_loss_and_scores_count_by_samples():
    evaluator = validator(lambda out, y: out.mean())
    do(evaluator, Due(), home(0), item(3), item(1), EpochEnd(last=False))
    do(evaluator, result(0, y=torch.full((3, 1), 10.0)))
    (done,) = reports(do(evaluator, result(1, y=torch.full((1, 1), 50.0))), RoundDone)
    assert (done.loss, done.samples) == (20.0, 4)


# ── results ──────────────────────────────────────────────────────────────────────────────────────────


def predictor() -> Evaluator:
    evaluator = of(ak.Sentinel.predict([], in_flight=3))
    do(evaluator, Attach(), home(0), item(), item(), item(), EpochEnd(last=True))
    return evaluator


def test_predictions_come_in_the_order_of_the_inputs_whatever_came_first():
    evaluator = predictor()
    ys = [torch.randn(4, 3) for _ in range(3)]
    effects = [e for n in (2, 0, 1) for e in do(evaluator, result(n, y=ys[n]))]
    (ended,) = reports(effects, SentinelEnded)
    assert torch.equal(ended.result, torch.cat(ys))
    assert stops(effects)


def test_predictions_in_a_tuple_or_dict_are_joined_part_by_part():
    for form in (lambda y: (y, y + 1), lambda y: {"a": y, "b": y + 1}):
        evaluator, ys = predictor(), [torch.randn(4, 3) for _ in range(3)]
        effects = [e for n in range(3) for e in do(evaluator, result(n, y=form(ys[n])))]
        (ended,) = reports(effects, SentinelEnded)
        joined, wanted = ended.result, form(torch.cat(ys))
        assert type(joined) is type(wanted)
        for key in wanted if isinstance(wanted, dict) else range(2):
            assert torch.equal(joined[key], wanted[key])


def test_predictions_that_cannot_be_joined_fail_it_and_its_last_words_are_whole():
    evaluator = predictor()
    do(evaluator, result(0), result(1))
    with pytest.raises(DataError, match=r"float32 \(\*, 3\) and float32 \(\*, 5\)"):
        do(evaluator, result(2, y=torch.randn(4, 5)))
    (ended,) = reports(list(evaluator.last_words()), SentinelEnded)
    assert ended.result is None


def test_an_export_asks_every_gate_and_ends_with_their_states():
    evaluator = of(Evaluation(role=EXPORT, batches=(), loss=None))
    do(evaluator, Attach())
    effects = do(evaluator, home(0))
    assert [(e.to, e.message) for e in effects] == [(gate, Export(cut(0))) for gate in ROW]
    states = {gate: {"weight": torch.randn(2)} for gate in ROW}
    effects = do(evaluator, *(Exported(cut(0), gate, states[gate]) for gate in ROW))
    assert sends(effects, Release) == [Release(cut(0))] * 2
    assert reports(effects, SentinelEnded)[0].result == CutStates(states, (0, 0))
    assert stops(effects)


# ── the best ─────────────────────────────────────────────────────────────────────────────────────────


def rounds_with(losses, best, keep_last=False):
    """Rounds with these losses; what was kept and reported."""
    value = iter(losses)
    evaluator = validator(
        lambda out, y: torch.tensor(next(value)),
        best=best,
        keep_last=keep_last,
        scores={"s": lambda out, y: -out.mean()},
    )
    records = []
    for number in range(len(losses)):
        effects = do(evaluator, Due()) + one_round(
            evaluator, number, number, y=torch.full((4, 3), 1.0 * number)
        )
        if sends(effects, Export):
            state = {"n": torch.tensor(number)}
            effects += do(evaluator, *(Exported(cut(number), gate, state) for gate in ROW))
        records += reports(effects)
    return records


def kinds(records, kind):
    return [record for record in records if isinstance(record, kind)]


def test_the_weights_of_every_better_round_are_fetched_before_its_cut_is_released():
    records = rounds_with([3.0, 2.0, 2.5, 1.0], ak.Best())
    kept = kinds(records, BestKept)
    assert [(k.round, k.value) for k in kept] == [(1, 3.0), (2, 2.0), (4, 1.0)]
    assert kept[-1].states == {gate: {"n": 3} for gate in ROW}
    assert [r.best for r in kinds(records, RoundDone)] == [True, True, False, True]


def test_the_weights_of_every_round_are_reported_where_that_is_asked():
    records = rounds_with([3.0, 4.0, 2.0], ak.Best(), keep_last=True)
    assert [k.round for k in kinds(records, LastKept)] == [1, 2, 3]
    assert kinds(records, LastKept)[1].states == {gate: {"n": 1} for gate in ROW}
    assert [k.round for k in kinds(records, BestKept)] == [1, 3]
    assert [r.best for r in kinds(records, RoundDone)] == [True, False, True]
    assert not kinds(rounds_with([3.0], None, keep_last=True), BestKept)


def test_nan_is_never_the_best():
    kept = kinds(rounds_with([float("nan"), 2.0, float("nan")], ak.Best()), BestKept)
    assert [k.round for k in kept] == [2]


def test_scores_are_better_when_higher_unless_told_otherwise():
    records = rounds_with([1.0] * 3, ak.Best("s"))  # the score falls: 0, -1, -2
    assert [k.round for k in kinds(records, BestKept)] == [1]
    records = rounds_with([1.0] * 3, ak.Best("s", higher_is_better=False))
    assert [k.round for k in kinds(records, BestKept)] == [1, 2, 3]


def test_patience_counts_rounds_without_a_better_one_and_starts_again_with_each():
    records = rounds_with([3.0, 4.0, 2.0, 2.0, 2.0, 2.0], ak.Best(patience=2))
    assert [r.stop_training for r in kinds(records, RoundDone)] == [False, False, False, False, True, True]


# ── an orderly end ───────────────────────────────────────────────────────────────────────────────────


def test_detached_between_rounds_it_ends_at_once_and_during_one_after_it():
    assert stops(do(validator(), Detach()))
    evaluator = validator()
    do(evaluator, Due())
    assert do(evaluator, Detach()) == []
    effects = one_round(evaluator)
    assert len(reports(effects, RoundDone)) == 1
    assert stops(effects)


def test_detached_during_a_round_it_begins_no_other_whatever_falls_due():
    evaluator = validator()
    do(evaluator, Due(), Detach(), Due(), Due(last=True))
    effects = one_round(evaluator)
    assert sends(effects, Cut) == []
    assert stops(effects)


def test_detached_with_drop_during_a_round_it_leaves_no_pin_and_ends_at_once():
    evaluator = validator()
    do(evaluator, Due(), home(0), item())
    effects = do(evaluator, Detach(drop=True))
    assert sends(effects, Forget) == [Forget(ME)] * 2
    assert reports(effects, RoundDone) == []
    assert stops(effects)


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_closed_or_failed_during_a_round_it_leaves_no_pin(how):
    evaluator = validator()
    do(evaluator, Due(), home(0), item())
    effects = do(evaluator, Close()) if how == "closed" else list(evaluator.last_words())
    assert sends(effects, Forget) == [Forget(ME)] * 2
    assert len(reports(effects, SentinelEnded)) == 1


def test_a_refusal_fails_it_with_the_gate_the_batch_and_the_reason():
    evaluator = validator()
    do(evaluator, Due(), home(0), item())
    with pytest.raises(DataError, match="gate/1 refused it: it is red"):
        do(evaluator, Refused(Batch(ME, 0), "gate/1", Fault.FORM, "it is red"))


def test_a_probe_is_answered_with_the_rounds_done():
    evaluator = validator()
    do(evaluator, Due())
    one_round(evaluator)
    do(evaluator, Due(), home(1), item())
    (status,) = reports(do(evaluator, Probe(2)), SentinelStatus)
    assert (status.probe, status.role, status.rounds, status.in_flight) == (2, "validate", 1, 1)
